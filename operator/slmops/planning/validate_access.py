# SPDX-License-Identifier: Apache-2.0
"""Checks of `spec.service.auth` and `spec.service.tls`."""

from slmops.api import SLMDeploymentSpec
from slmops.model.source_secret import secret_of
from slmops.planning.finding import Finding


def find_access_problem(spec: SLMDeploymentSpec) -> Finding | None:
    """First finding: a Secret that is for more than one thing reaches more than one container."""
    named = {}
    if spec.service.auth is not None:
        named["spec.service.auth.apiKeysSecretRef"] = spec.service.auth.api_keys_secret_ref.name
    if spec.service.tls is not None:
        named["spec.service.tls.secretRef"] = spec.service.tls.secret_ref.name
    if len(set(named.values())) < len(named):
        keys, tls = named
        return _invalid(
            f"{keys}: {named[keys]} is also the Secret of {tls}; keep API keys in a Secret of their own"
        )
    for index, variant in enumerate(spec.variants):
        secret = secret_of(variant.source)
        for where, name in named.items():
            if secret is not None and secret.name == name:
                return _invalid(
                    f"{where}: {name} is also the Secret of spec.variants[{index}].source, which the fetcher "
                    "gets and sends to the source; use a Secret of its own"
                )
    return None


def _invalid(message: str) -> Finding:
    return Finding(reason="InvalidSpec", message=message)
