# SPDX-License-Identifier: Apache-2.0
"""The custom resources of group `slmops.dev`: pydantic models are their single source."""

from slmops.api.spec import SLMDeploymentSpec
from slmops.api.status import SLMDeploymentStatus

GROUP = "slmops.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "SLMDeployment"
PLURAL = "slmdeployments"

FINALIZER = f"{GROUP}/cleanup"
RETRY_ANNOTATION = f"{GROUP}/retry"
"""Setting it to a new value lets a revision that failed be rolled out once more."""

__all__ = [
    "API_VERSION",
    "FINALIZER",
    "GROUP",
    "KIND",
    "PLURAL",
    "RETRY_ANNOTATION",
    "VERSION",
    "SLMDeploymentSpec",
    "SLMDeploymentStatus",
]
