# SPDX-License-Identifier: Apache-2.0
"""The custom resources of group `slmops.dev`: pydantic models are their single source."""

from slmops.api.slmmodel import SLMModelSpec
from slmops.api.slmmodel_status import SLMModelStatus
from slmops.api.spec import SLMDeploymentSpec
from slmops.api.status import SLMDeploymentStatus

GROUP = "slmops.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "SLMDeployment"
PLURAL = "slmdeployments"
MODEL_KIND = "SLMModel"
MODEL_PLURAL = "slmmodels"

FINALIZER = f"{GROUP}/cleanup"
RETRY_ANNOTATION = f"{GROUP}/retry"
"""Setting it to a new value lets a revision that failed be rolled out once more."""

PROMOTE_ANNOTATION = f"{GROUP}/promote"
"""`REVISION[/WAVE][@ANY]`: approve the wave that waits; `REVISION/*`: go through all waves now."""
SKIP_ANNOTATION = f"{GROUP}/skip"
"""`REVISION[/WAVE][@ANY]`: judge the current wave no further and go on with the next."""
ABORT_ANNOTATION = f"{GROUP}/abort"
"""`REVISION[@ANY]`: roll the revision back; it counts as failed."""
UNDO_ANNOTATION = f"{GROUP}/undo"
"""`REVISION[@ANY]`: roll out a revision of the history instead of spec's, until spec changes."""
ACCEPT_ANNOTATION = f"{GROUP}/accept"
"""On an SLMModel with policy Manual: the version that is to be offered."""
TRAIN_ANNOTATION = f"{GROUP}/train"
"""Setting it to a new value lets every site of spec.adaptation train an adapter, whatever the cooldown."""
PAUSED_ANNOTATION = f"{GROUP}/paused"
"""`true` stops the rollout as `spec.rollout.paused` does, for as long as it is set."""

__all__ = [
    "ABORT_ANNOTATION",
    "ACCEPT_ANNOTATION",
    "API_VERSION",
    "FINALIZER",
    "GROUP",
    "KIND",
    "MODEL_KIND",
    "MODEL_PLURAL",
    "PAUSED_ANNOTATION",
    "PLURAL",
    "PROMOTE_ANNOTATION",
    "RETRY_ANNOTATION",
    "SKIP_ANNOTATION",
    "TRAIN_ANNOTATION",
    "UNDO_ANNOTATION",
    "VERSION",
    "SLMDeploymentSpec",
    "SLMDeploymentStatus",
    "SLMModelSpec",
    "SLMModelStatus",
]
