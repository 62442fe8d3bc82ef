# SPDX-License-Identifier: Apache-2.0
"""What every type of the API shares: camelCase names, scalar types, label selectors."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

DURATION_PATTERN: Final = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
QUANTITY_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
DECIMAL_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?$"
DECIMAL_OR_PERCENT_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?%?$"
NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SHA256_PATTERN: Final = r"^[0-9a-f]{64}$"

Duration = Annotated[str, StringConstraints(pattern=DURATION_PATTERN, max_length=32)]
"""A Go duration such as `90s`, `1m30s` or `250ms`."""
Quantity = Annotated[str, StringConstraints(pattern=QUANTITY_PATTERN, max_length=32)]
"""A Kubernetes quantity such as `512Mi` or `500m`."""
Decimal = Annotated[str, StringConstraints(pattern=DECIMAL_PATTERN, max_length=32)]
"""A decimal number as a string: the API has no floats, which do not survive a round trip."""
DecimalOrPercent = Annotated[str, StringConstraints(pattern=DECIMAL_OR_PERCENT_PATTERN, max_length=32)]
"""A decimal number (absolute) or one that ends in `%` (relative)."""
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=20)]
"""A short DNS label; it becomes part of object names."""
Sha256 = Annotated[str, StringConstraints(pattern=SHA256_PATTERN, max_length=64)]
"""64 lower-case hexadecimal digits."""
SecretName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        min_length=1,
        max_length=253,
    ),
]
"""A DNS subdomain, as the API server wants it: it becomes part of a request's path."""


def _check_timestamp(text: str) -> str:
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None and found.timestamp() >= 0:
            return text
    except (ValueError, OverflowError):
        pass
    raise ValueError("it is not a time such as 2025-06-15T12:00:00Z")


Timestamp = Annotated[str, AfterValidator(_check_timestamp)]
"""A time in status, RFC 3339. Checked as it is read: a plan that stumbles over it says nothing of why."""

_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_QUANTITY_UNITS: Final = {
    None: 1.0,
    "m": 0.001,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def duration_seconds(text: str) -> float:
    """Seconds of a Go duration; ValueError if it is none."""
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration such as 90s or 1m30s")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def quantity_value(text: str) -> float:
    """Value of a Kubernetes quantity in its base unit (bytes, cores); ValueError if it is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 512Mi or 500m")
    return float(match[1]) * _QUANTITY_UNITS[match[2]]


def cel(rule: str, message: str) -> dict[str, str]:
    """One `x-kubernetes-validations` entry."""
    return {"rule": rule, "message": message}


def validations(*rules: dict[str, str]) -> dict[str, Any]:
    """Schema extension that holds CEL rules; the API server names the field that carries them."""
    return {"x-kubernetes-validations": list(rules)}


def between(least: str, most: str) -> dict[str, Any]:
    """Schema extension of a duration that has these bounds."""
    return validations(
        cel(
            f"duration(self) >= duration('{least}') && duration(self) <= duration('{most}')",
            f"must be from {least} to {most}",
        )
    )


def exactly_one_of(*names: str) -> dict[str, str]:
    """CEL rule: exactly one of the optional fields is set."""
    count = " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in names)
    return cel(f"{count} == 1", f"exactly one of {', '.join(names)} must be set")


def keyed(*keys: str) -> dict[str, Any]:
    """Schema extension: the list is a map by these fields of its entries, as they are named in JSON."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


class ApiModel(BaseModel):
    """camelCase in JSON, snake_case in Python, immutable, unknown fields ignored.

    The API server prunes unknown fields and `kubectl` refuses them; here they are ignored so that
    an older operator still reads a newer object.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", validate_default=False
    )

    def to_body(self) -> dict[str, Any]:
        """The JSON object as the API server stores it: aliases, unset optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class LabelSelectorRequirement(ApiModel):
    """One requirement on a label."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
                "values must be given for In and NotIn, and left out for Exists and DoesNotExist",
            )
        )
    )

    key: str = Field(min_length=1, max_length=317, description="Label key that the requirement is about.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="Relation between the label's value and `values`."
    )
    values: list[str] = Field(
        default_factory=list,
        max_length=100,
        description="Values; required for In and NotIn, empty for Exists and DoesNotExist.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class LabelSelector(ApiModel):
    """Kubernetes label selector; all requirements must hold, an empty one selects everything."""

    match_labels: dict[str, str] = Field(
        default_factory=dict, max_length=50, description="Labels a node must carry with exactly these values."
    )
    match_expressions: list[LabelSelectorRequirement] = Field(
        default_factory=list,
        max_length=20,
        description="Requirements on labels.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
