# SPDX-License-Identifier: Apache-2.0
"""Files that say what devices take and what things cost."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from slmcli.errors import UsageError
from slmcli.safe import clean, clean_tree
from slmops.model.observed import ProfileView

DEFAULT: Final = "default"
"""Entry for nodes whose profile has none, and for nodes of no profile."""
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class _Strict(BaseModel):
    """camelCase, immutable; an unknown key is a mistake, as a price that is passed over would mislead."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class DevicePrice(_Strict):
    """What a device of one profile costs, and how long it is used."""

    price: Amount
    years: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class CloudPrice(_Strict):
    """A price list of somebody who serves models, per million tokens."""

    name: str = "cloud"
    per_million_input: Amount
    per_million_output: Amount


class Prices(_Strict):
    """The file of --prices."""

    currency: Annotated[str, Field(pattern=r"^[A-Za-z]{1,8}$")]
    per_kilowatt_hour: Amount | None = None
    devices: dict[str, DevicePrice] = Field(default_factory=dict)
    cloud: CloudPrice | None = None


class Watts(_Strict):
    """Power that a device takes."""

    idle: Amount
    busy: Amount


M = TypeVar("M", bound=BaseModel)


def read_prices(path: Path) -> Prices:
    """UsageError names the place and the cure."""
    return _validate(Prices, _load(path), str(path))


def read_watts(path: Path) -> dict[str, Watts]:
    """Watts by profile."""
    return {name: _validate(Watts, body, f"{path}: {name}") for name, body in _load(path).items()}


def watts_of_profiles(profiles: Iterable[ProfileView]) -> dict[str, Watts]:
    """`spec.powerWatts` of the DeviceProfiles that say it."""
    return {
        profile.name: Watts(idle=float(power.idle), busy=float(power.busy))
        for profile in profiles
        if (power := profile.spec.power_watts) is not None
    }


T = TypeVar("T")


def entry_of(entries: Mapping[str, T], profile: str) -> T | None:
    """What counts for a profile; empty is no profile."""
    return entries.get(profile) or entries.get(DEFAULT)


def _load(path: Path) -> dict[str, Any]:
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(body, dict):
        raise UsageError(f"{path}: must be a map of keys and values, see docs/cost.md")
    cleaned: dict[str, Any] = clean_tree(body)
    return cleaned


def _validate(model: type[M], body: Any, where: str) -> M:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, problem["loc"])) or "the entry"
        raise UsageError(f"{where}: {clean(field)}: {clean(problem['msg'])}; see docs/cost.md") from None
