# SPDX-License-Identifier: Apache-2.0
"""`spec.service.auth` and `spec.service.tls`: who may ask the pods, and how they speak."""

from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints

from slmops.api.base import ApiModel, SecretName, cel, validations

DEFAULT_KEY: Final = "keys"

SecretKey = Annotated[
    str,
    # A key of a Secret, as the API server wants it: no name of a folder.
    StringConstraints(pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", min_length=1, max_length=253),
]


class KeysSecretRef(ApiModel):
    """A key of a Secret of the same namespace."""

    name: SecretName = Field(description="Name of the Secret. The operator does not read it.")
    key: SecretKey = Field(
        default=DEFAULT_KEY,
        description="Its key that holds the API keys: one a line, empty lines and lines that begin with # do "
        "not count.",
    )


class Auth(ApiModel):
    """Who may ask."""

    api_keys_secret_ref: KeysSecretRef = Field(
        description="API keys that clients may use. It is mounted into the inference server alone; new keys "
        "are in force when the kubelet has written them, without a restart."
    )


class TlsSecretRef(ApiModel):
    """A Secret of the same namespace."""

    name: SecretName = Field(
        description="Name of a Secret of type kubernetes.io/tls (tls.crt, tls.key). The operator does not "
        "read it."
    )


class Tls(ApiModel):
    """The certificate of the pods."""

    secret_ref: TlsSecretRef = Field(
        description="Certificate chain and private key. It is mounted into the inference server alone; a new "
        "certificate is in force when the kubelet has written it, without a restart."
    )


def apart() -> dict[str, Any]:
    """CEL rule for spec.service: who renews certificates need not be able to write API keys."""
    return validations(
        cel(
            "!has(self.auth) || !has(self.tls) || self.auth.apiKeysSecretRef.name != self.tls.secretRef.name",
            "auth.apiKeysSecretRef and tls.secretRef name one Secret; keep API keys in a Secret of their own",
        )
        | {"fieldPath": ".auth"}
    )
