# SPDX-License-Identifier: Apache-2.0
"""How a fetching container gets at the file of limits and neighbours.

It is part of every pod template, whatever spec says: a template never changes, the file may.
"""

from typing import Any, Final

from slmops.api import SLMDeploymentSpec
from slmops.planning.names import Names
from slmwire import env, paths

Body = dict[str, Any]
_VOLUME: Final = "distribution"

DISTRIBUTION_MOUNT: Final[Body] = {
    "name": _VOLUME,
    # The folder and not the file: a subPath would stay as it was when the pod started.
    "mountPath": paths.DISTRIBUTION_FILE.rpartition("/")[0],
    "readOnly": True,
}


def distribution_volume(names: Names) -> Body:
    """Volume of the ConfigMap; a pod starts without it, too."""
    return {"name": _VOLUME, "configMap": {"name": names.distribution, "optional": True}}


def limit_env(spec: SLMDeploymentSpec) -> list[Body]:
    """Variables that tell the fetcher where its limits are and how full the disk may get."""
    return [
        {"name": env.DISTRIBUTION_FILE, "value": paths.DISTRIBUTION_FILE},
        {"name": env.HIGH_WATERMARK_PERCENT, "value": str(spec.cache.high_watermark_percent or 0)},
    ]
