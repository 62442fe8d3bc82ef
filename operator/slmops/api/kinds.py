# SPDX-License-Identifier: Apache-2.0
"""The kinds of the API: names, columns and rules of each CustomResourceDefinition."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

from slmops.api import (
    API_VERSION,
    GROUP,
    KIND,
    MODEL_KIND,
    MODEL_PLURAL,
    PLURAL,
    RETRY_ANNOTATION,
    SLMDeploymentSpec,
    SLMDeploymentStatus,
    SLMModelSpec,
    SLMModelStatus,
)
from slmops.api.base import ApiModel
from slmops.api.profile import PROFILE_KIND, PROFILE_PLURAL, DeviceProfileSpec
from slmops.api.slmmodel_status import ModelConditionType
from slmops.api.status import ConditionType


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of object."""

    kind: str
    plural: str
    short_name: str
    scope: Literal["Namespaced", "Cluster"]
    spec: type[ApiModel]
    status: type[ApiModel] | None
    conditions: type[StrEnum] | None
    """The string below each member says what it means."""
    introduction: str
    """First words of the reference."""
    columns: tuple[Mapping[str, Any], ...]
    rules: tuple[Mapping[str, str], ...] = ()
    """CEL rules of the whole object."""
    subresources: Mapping[str, Any] = field(default_factory=dict)
    """Beside `status`."""

    @property
    def file_name(self) -> str:
        """Name of the file with its CustomResourceDefinition."""
        return f"{GROUP}_{self.plural}.yaml"


SLM_DEPLOYMENT: Final = Kind(
    kind=KIND,
    plural=PLURAL,
    short_name="slmd",
    scope="Namespaced",
    spec=SLMDeploymentSpec,
    status=SLMDeploymentStatus,
    conditions=ConditionType,
    introduction=f"""\
`{KIND}` (`slmd`), `{API_VERSION}`, namespaced. `metadata.name` has at most 40 characters, begins with a
letter and holds no dot: it becomes part of label keys and names the Service. Fields with a default may be
left out; the API server fills them in. The annotation `{RETRY_ANNOTATION}`, set to a new value, lets a
revision that was rolled back be tried once more; the others are in [operations](operations.md#by-hand).
""",
    columns=(
        {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
        {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
        {"name": "Revision", "type": "string", "jsonPath": ".status.stableRevision"},
        {"name": "Nodes", "type": "string", "jsonPath": ".status.readyNodes"},
        {"name": "Canary", "type": "string", "jsonPath": ".status.canary"},
        {"name": "Version", "type": "string", "priority": 1, "jsonPath": ".status.modelVersion"},
        {
            "name": "Message",
            "type": "string",
            "priority": 1,
            "jsonPath": '.status.conditions[?(@.type=="Ready")].message',
        },
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ),
    rules=(
        {
            "rule": "self.metadata.name.size() <= 40 && "
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "message": "metadata.name becomes part of label keys and names a Service: use at most 40 "
            "lower-case letters, digits and hyphens, no dot, beginning with a letter",
        },
    ),
    subresources={
        "scale": {
            "specReplicasPath": ".spec.placement.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    },
)

DEVICE_PROFILE: Final = Kind(
    kind=PROFILE_KIND,
    plural=PROFILE_PLURAL,
    short_name="devp",
    scope="Cluster",
    spec=DeviceProfileSpec,
    status=None,
    conditions=None,
    introduction=f"""\
`{PROFILE_KIND}` (`devp`), `{API_VERSION}`, cluster-scoped. `metadata.name` has at most 40 characters and no
dot: it becomes part of the names of variants. How a variant is chosen by it: [profiles](profiles.md).
""",
    columns=(
        {"name": "Priority", "type": "integer", "jsonPath": ".spec.priority"},
        {"name": "Engine", "type": "string", "jsonPath": ".spec.engine"},
        {"name": "Memory", "type": "string", "jsonPath": ".spec.budgets.memory"},
        {"name": "Strategy", "type": "string", "jsonPath": ".spec.variants.strategy"},
        {"name": "Power mode", "type": "string", "priority": 1, "jsonPath": ".spec.powerMode"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ),
    rules=(
        {
            "rule": "self.metadata.name.size() <= 40 && "
            "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "message": "metadata.name becomes part of the names of variants: use at most 40 lower-case "
            "letters, digits and hyphens, no dot",
        },
    ),
)

SLM_MODEL: Final = Kind(
    kind=MODEL_KIND,
    plural=MODEL_PLURAL,
    short_name="slmm",
    scope="Namespaced",
    spec=SLMModelSpec,
    status=SLMModelStatus,
    conditions=ModelConditionType,
    introduction=f"""\
`{MODEL_KIND}` (`slmm`), `{API_VERSION}`, namespaced: the versions of a model, the variants that Jobs make
of each, what they measured, and which are offered to SLMDeployments ([models](models.md)). `metadata.name`
has at most 40 characters and no dot: it becomes part of the names of Jobs. The annotation
`{RETRY_ANNOTATION}`, set to a new value, tries once more what failed.
""",
    columns=(
        {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
        {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
        {"name": "Latest", "type": "string", "jsonPath": ".status.latestVersion"},
        {"name": "Accepted", "type": "string", "jsonPath": ".status.acceptedVersion"},
        {"name": "Progress", "type": "string", "jsonPath": ".status.progress"},
        {
            "name": "Message",
            "type": "string",
            "priority": 1,
            "jsonPath": '.status.conditions[?(@.type=="Ready")].message',
        },
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ),
    rules=(
        {
            "rule": "self.metadata.name.size() <= 40 && "
            "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "message": "metadata.name becomes part of the names of Jobs: use at most 40 lower-case letters, "
            "digits and hyphens, no dot",
        },
    ),
)

KINDS: Final[tuple[Kind, ...]] = (SLM_DEPLOYMENT, SLM_MODEL, DEVICE_PROFILE)
