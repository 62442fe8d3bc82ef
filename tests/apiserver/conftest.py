# SPDX-License-Identifier: Apache-2.0
"""One real control plane for all tests of this folder, with the CRD installed."""

from collections.abc import Iterator

import pytest

from e2e.rig import ControlPlane
from slmops.api.crd import build_crd


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """Store, API server, controllers and scheduler; taken down, data and all, at the end."""
    plane = ControlPlane("apiserver-tests").up()
    try:
        plane.kubectl.apply(build_crd())
        plane.kubectl("wait", "--for=condition=Established", "crd/slmdeployments.slmops.dev", "--timeout=30s")
        yield plane
    finally:
        plane.down()
