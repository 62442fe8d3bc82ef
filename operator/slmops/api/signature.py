# SPDX-License-Identifier: Apache-2.0
"""`spec.model.signature`: who must have signed the model."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from slmops.api.base import ApiModel
from slmops.api.source import FILE_PATH_PATTERN

PublicKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^\s*-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----\s*$",
        max_length=2048,
    ),
]


class Signature(ApiModel):
    """An OpenSSF model signature (model_signing sign key), verified by the operator without a network."""

    policy: Literal["Require", "Warn"] = Field(
        default="Require",
        description="Require takes no new revision without a valid signature; Warn takes it and says so.",
    )
    public_keys: list[PublicKey] = Field(
        min_length=1,
        max_length=5,
        description="Elliptic-curve keys (P-256, P-384 or P-521) in PEM; one of them must have signed.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    file: str = Field(
        default="model.sig",
        pattern=FILE_PATH_PATTERN,
        max_length=200,
        description="Path of the signature among the model's files; the only file that need not be signed.",
    )
    inline: list[Annotated[str, StringConstraints(min_length=1, max_length=65536)]] = Field(
        default_factory=list,
        max_length=16,
        description="The signatures themselves, in place of the file: one for the files of each variant, "
        "in any order. Needed where the operator cannot read files (sources pvc and file, delivery "
        "ImageVolume).",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
