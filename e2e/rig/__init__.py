# SPDX-License-Identifier: Apache-2.0
"""A real multi-node Kubernetes on one Linux machine, for the tests, the demo and the benchmark."""

from e2e.rig.control_plane import ControlPlane
from e2e.rig.kubectl import Kubectl
from e2e.rig.shell import RigError

__all__ = ["ControlPlane", "Kubectl", "RigError"]
