# SPDX-License-Identifier: Apache-2.0
"""What a pull secret and a registry's challenge say. The operator and the fetcher must read them alike."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

MAX_CHALLENGE_CHARACTERS: Final = 4096
REPOSITORY: Final = re.compile(r"/v2/(.+)/(?:blobs|manifests)/")
"""Finds the repository in the path of a registry's URL."""
_CHALLENGE: Final = re.compile(r'([A-Za-z]+)\s+((?:[A-Za-z_-]+\s*=\s*(?:"[^"]*"|[^\s,"]+)\s*,?\s*)+)')
_PARAMETER: Final = re.compile(r'([A-Za-z_-]+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))')
_DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class LoginError(ValueError):
    """The pull secret cannot be read; the message quotes nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a Docker configuration holds for one registry; all empty means anonymous."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """OAuth2 refresh token."""
    registry_token: str = ""
    """Bearer token for the registry itself."""


def find_login(config: str | bytes, url: str) -> Login:
    """The entry of a Docker configuration for `url`: by host, or by host and the longest path. LoginError."""
    try:
        auths = json.loads(config)["auths"]
        rows = {str(name): dict(row) for name, row in auths.items() if isinstance(row, Mapping)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoginError(
            'the pull secret is not a Docker configuration; it must be {"auths": {"registry": {...}}}, as '
            "kubectl create secret docker-registry makes it"
        ) from error
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    repository = match[1] if (match := REPOSITORY.search(parts.path)) else ""
    best, length = Login(), -1
    for name, row in rows.items():
        registry, _, path = name.lower().removeprefix("https://").removeprefix("http://").partition("/")
        path = path.strip("/")
        if path in ("v1", "v2"):
            path = ""
        same = registry == host or {registry, host} <= _DOCKER_HUB
        if same and (not path or f"{repository}/".startswith(f"{path}/")) and len(path) > length:
            best, length = _read_login(name, row), len(path)
    return best


def _read_login(name: str, row: Mapping[str, Any]) -> Login:
    user, password = str(row.get("username") or ""), str(row.get("password") or "")
    if row.get("auth"):
        try:
            text = base64.b64decode(str(row["auth"]), validate=True).decode()
        except ValueError as error:
            raise LoginError(
                f"the pull secret's entry for {name} has an `auth` that is no base64; make it with "
                "kubectl create secret docker-registry"
            ) from error
        user, _, password = text.partition(":")
        password = password.rstrip("\0")
    return Login(
        username=user,
        password=password,
        identity_token=str(row.get("identitytoken") or ""),
        registry_token=str(row.get("registrytoken") or ""),
    )


def parse_challenges(headers: Sequence[str]) -> dict[str, dict[str, str]]:
    """WWW-Authenticate headers as {scheme: {parameter: value}}, names in lower case."""
    found: dict[str, dict[str, str]] = {}
    for header in headers:
        # Beyond any real one, the time to look through it would grow with its square.
        for scheme, text in _CHALLENGE.findall(header[:MAX_CHALLENGE_CHARACTERS]):
            values = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(text)}
            found.setdefault(scheme.lower(), values)
    return found
