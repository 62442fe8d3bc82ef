# SPDX-License-Identifier: Apache-2.0
"""Which names of models a server answers to: its model, and the model with a LoRA adapter."""

from collections.abc import Iterator
from dataclasses import dataclass

from slmserve.errors import ApiError
from slmserve.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedName:
    """A name of /v1/models; `adapter` is empty for the model itself."""

    identifier: str
    adapter: str = ""


def served_names(service: Service) -> Iterator[ServedName]:
    """The model, then `MODEL:ADAPTER` for each of its adapters; raises ApiError 503 until it is loaded."""
    model = service.config.identity.model
    yield ServedName(identifier=model)
    for adapter in service.model.engine.adapters:
        yield ServedName(identifier=f"{model}:{adapter}", adapter=adapter)


def resolve_name(service: Service, name: str) -> ServedName:
    """What a request's `model` means, an adapter's bare name included; raises ApiError 404.

    The model's own name wins over an adapter of the same name.
    """
    names = list(served_names(service))
    for served in names:
        if name == served.identifier:
            return served
    for served in names:
        if served.adapter and name == served.adapter:
            return served
    known = ", ".join(f"'{served.identifier}'" for served in names[:5])
    more = f" and {len(names) - 5} more (see /v1/models)" if len(names) > 5 else ""
    raise ApiError(
        404,
        f"the model '{name[:100]}' does not exist here; this server has {known}{more}",
        param="model",
        code="model_not_found",
    )
