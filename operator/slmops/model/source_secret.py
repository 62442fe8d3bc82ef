# SPDX-License-Identifier: Apache-2.0
"""Which Secret a source names, and under which names its keys reach who asks the source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from slmops.api.source import Source

Auth = Literal["bearer", "basic", "s3", "oci"]
"""Values of slmwire.env.SOURCE_AUTH."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSecret:
    """A Secret in the deployment's namespace; `items` maps its keys to the names of paths.SOURCE_DIR."""

    name: str
    auth: Auth
    items: Mapping[str, str]
    optional: frozenset[str] = field(default_factory=frozenset)
    """Keys that may be missing."""


def secret_of(source: Source) -> SourceSecret | None:
    """The Secret that `source` names; None for anonymous access."""
    holder = source.http or source.hf
    if holder is not None and holder.secret_ref is not None:
        reference = holder.secret_ref
        return SourceSecret(name=reference.name, auth="bearer", items={reference.key: "token"})
    if source.http is not None and source.http.basic_auth_ref is not None:
        items = {"username": "username", "password": "password"}
        return SourceSecret(name=source.http.basic_auth_ref.name, auth="basic", items=items)
    if source.s3 is not None and source.s3.secret_ref is not None:
        keys = ("accessKeyId", "secretAccessKey", "sessionToken")
        return SourceSecret(
            name=source.s3.secret_ref.name,
            auth="s3",
            items={key: key for key in keys},
            optional=frozenset({"sessionToken"}),
        )
    if source.oci is not None and source.oci.pull_secret_ref is not None:
        items = {".dockerconfigjson": "config.json"}
        return SourceSecret(name=source.oci.pull_secret_ref.name, auth="oci", items=items)
    return None


def auth_of(source: Source) -> Auth:
    """How the source is asked, with or without a Secret: a registry wants a token even from anybody."""
    secret = secret_of(source)
    if secret is not None:
        return secret.auth
    return "oci" if source.oci is not None else "bearer"
