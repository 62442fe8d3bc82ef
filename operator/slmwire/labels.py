# SPDX-License-Identifier: Apache-2.0
"""Kubernetes label keys and values of the objects that the operator makes."""

from enum import StrEnum
from typing import Final

DOMAIN: Final = "slmops.dev"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY_VALUE: Final = "slmops"
DEPLOYMENT: Final = f"{DOMAIN}/deployment"
REVISION: Final = f"{DOMAIN}/revision"
VARIANT: Final = f"{DOMAIN}/variant"
ROLE: Final = f"{DOMAIN}/role"
SITE: Final = f"{DOMAIN}/site"
"""On pods of a Deployment that serves one site."""
MODEL: Final = f"{DOMAIN}/model"
"""On Jobs of an SLMModel and their pods: its name."""
WORK: Final = f"{DOMAIN}/work"
"""On the same: optimise, evaluate or train."""
ADAPTATION: Final = f"{DOMAIN}/adaptation"
"""On Jobs that train an adapter for an SLMDeployment, and on their pods: its name. They carry no label
DEPLOYMENT, so they are never taken for pods that serve or fetch."""
VERSION: Final = f"{DOMAIN}/version"
PROFILE: Final = f"{DOMAIN}/profile"


class Role(StrEnum):
    """What a pod of ours is for."""

    SERVE = "serve"
    PREFETCH = "prefetch"
    RELEASE = "release"
