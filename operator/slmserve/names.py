# SPDX-License-Identifier: Apache-2.0
"""Which names of models a server answers to: its model, and the model with a LoRA adapter.

With a default adapter the model's name means the model with it, and `MODEL:base` the model without any.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from slmserve.errors import ApiError
from slmserve.model import BASE
from slmserve.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedName:
    """A name of /v1/models; `adapter` is empty for the model itself."""

    identifier: str
    adapter: str = ""
    answers_as: str
    """`model` of the answers: with a default adapter the model's own name says which one it was."""
    bare: str = ""
    """Another way to say it: the part behind the model's name."""


def served_names(service: Service) -> Iterator[ServedName]:
    """The model, then `MODEL:ADAPTER` for each of its adapters; raises ApiError 503 until it is loaded."""
    model, default = service.config.identity.model, service.model.default_adapter
    yield ServedName(identifier=model, adapter=default, answers_as=f"{model}:{default}" if default else model)
    for adapter in service.model.engine.adapters:
        name = f"{model}:{adapter}"
        yield ServedName(identifier=name, adapter=adapter, answers_as=name, bare=adapter)
    if default:
        name = f"{model}:{BASE}"
        yield ServedName(identifier=name, answers_as=name, bare=BASE)


def resolve_name(service: Service, name: str) -> ServedName:
    """What a request's `model` means, an adapter's bare name included; raises ApiError 404.

    The model's own name wins over an adapter of the same name.
    """
    names = list(served_names(service))
    for served in names:
        if name == served.identifier:
            return served
    for served in names:
        if served.bare and name == served.bare:
            return served
    known = ", ".join(f"'{served.identifier}'" for served in names[:5])
    more = f" and {len(names) - 5} more (see /v1/models)" if len(names) > 5 else ""
    raise ApiError(
        404,
        f"the model '{name[:100]}' does not exist here; this server has {known}{more}",
        param="model",
        code="model_not_found",
    )
