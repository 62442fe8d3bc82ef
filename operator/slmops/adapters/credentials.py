# SPDX-License-Identifier: Apache-2.0
"""Credentials of a metrics provider: from a Secret, or from files that a Secret is mounted as.

They are kept for half a minute, so a rotation is taken soon and the API server is not asked for each
measurement. They appear in no log, no message and no `repr`.
"""

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from slmops.adapters.errors import Forbidden, KubeError, NotFound
from slmops.adapters.kube import KubeClient
from slmops.adapters.resources import SECRETS
from slmops.ports.metrics import ProviderError

CACHE_SECONDS: Final = 30.0
READ_TIMEOUT_SECONDS: Final = 5.0
TOKEN: Final = "token"
USERNAME: Final = "username"
PASSWORD: Final = "password"
CA: Final = "ca.crt"
_CACHE_SIZE: Final = 256
_FILE_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to sign in (by token, by name and password, or not at all) and whom to trust."""

    token: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    ca: str = field(default="", repr=False)
    """PEM certificates that are trusted instead of the system's; empty: the system's."""

    @property
    def signs_in(self) -> bool:
        """Whether anything secret is sent."""
        return bool(self.token or self.username)

    def headers(self) -> dict[str, str]:
        """The Authorization header, if any."""
        if self.token:
            return {"Authorization": f"Bearer {self.token}"}
        if self.username:
            pair = base64.b64encode(f"{self.username}:{self.password}".encode())
            return {"Authorization": f"Basic {pair.decode()}"}
        return {}


NO_CREDENTIALS: Final = Credentials()


def parse_credentials(data: Mapping[str, bytes], *, where: str) -> Credentials:
    """Credentials from the keys of a Secret; `where` names it. ProviderError names key and cure."""
    if not data.keys() & {TOKEN, USERNAME, PASSWORD, CA}:
        raise ProviderError(f"{where} has none of the keys token, username, ca.crt: add what is needed")
    if TOKEN in data and (USERNAME in data or PASSWORD in data):
        raise ProviderError(f"{where} has token and username or password: keep one of the two")
    if (USERNAME in data) != (PASSWORD in data):
        missing = PASSWORD if USERNAME in data else USERNAME
        raise ProviderError(f"{where} has no key {missing}: username and password go together")

    def text(key: str) -> str:
        if key not in data:
            return ""
        try:
            value = data[key].decode().strip("\r\n" if key == PASSWORD else None)
        except UnicodeDecodeError:
            raise ProviderError(f"{where}: {key} is not text; write it anew") from None
        if not value:
            raise ProviderError(f"{where}: {key} is empty; fill it in or remove it")
        return value

    found = Credentials(token=text(TOKEN), username=text(USERNAME), password=text(PASSWORD), ca=text(CA))
    if any(not "!" <= letter <= "~" for letter in found.token):
        raise ProviderError(f"{where}: token holds a space, a line break or a letter that is not ASCII")
    if ":" in found.username or any(letter < " " for letter in found.username + found.password):
        raise ProviderError(f"{where}: username must hold no colon, and no line breaks may be in either")
    if found.ca and "-----BEGIN CERTIFICATE-----" not in found.ca:
        raise ProviderError(f"{where}: ca.crt holds no PEM certificate")
    return found


class SecretCredentials:
    """Credentials from Secrets, read live and kept for a short while."""

    def __init__(self, kube: KubeClient, *, now: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._now = now
        self._known: dict[tuple[str, str], tuple[float, Credentials]] = {}

    async def read(self, namespace: str, name: str) -> Credentials:
        """Credentials of a Secret. Raises ProviderError."""
        key, now = (namespace, name), self._now()
        known = self._known.get(key)
        if known is not None and now - known[0] < CACHE_SECONDS:
            return known[1]
        self._known.pop(key, None)
        found = parse_credentials(await self._fetch(namespace, name), where=f"Secret {namespace}/{name}")
        self._known = {k: v for k, v in self._known.items() if now - v[0] < CACHE_SECONDS}
        if len(self._known) < _CACHE_SIZE:
            self._known[key] = (now, found)
        return found

    def forget(self, namespace: str, name: str) -> None:
        """They were refused: read them anew the next time."""
        self._known.pop((namespace, name), None)

    async def _fetch(self, namespace: str, name: str) -> dict[str, bytes]:
        where = f"Secret {namespace}/{name}"
        try:
            async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                body = await self._kube.get(SECRETS, namespace=namespace, name=name)
        except NotFound:
            raise ProviderError(
                f"{where} does not exist: create it with the key token, or username and password"
            ) from None
        except Forbidden:
            raise ProviderError(
                f"the operator may not read {where}: set the chart value rbac.readSecrets"
            ) from None
        except TimeoutError:
            raise ProviderError(f"{where} cannot be read: no answer from the API server") from None
        except KubeError as error:
            raise ProviderError(f"{where} cannot be read: {error}") from error
        data = {}
        for key in (TOKEN, USERNAME, PASSWORD, CA):
            value = (body.get("data") or {}).get(key)
            if value is not None:
                try:
                    data[key] = base64.b64decode(value, validate=True)
                except (binascii.Error, TypeError, ValueError):
                    raise ProviderError(f"{where}: {key} is not base64; write it anew") from None
        return data


class FileCredentials:
    """Credentials from a folder that a Secret is mounted at; the kubelet renews the files."""

    def __init__(self, folder: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._folder = Path(folder)
        self._now = now
        self._known: tuple[float, Credentials] | None = None

    def read(self) -> Credentials:
        """What the files say. Raises ProviderError."""
        now = self._now()
        if self._known is None or now - self._known[0] >= CACHE_SECONDS:
            where = f"the Secret mounted at {self._folder} (chart value prometheus.existingSecret)"
            self._known = (now, parse_credentials(self._load(where), where=where))
        return self._known[1]

    def forget(self) -> None:
        """They were refused: read them anew the next time."""
        self._known = None

    def _load(self, where: str) -> dict[str, bytes]:
        data = {}
        for key in (TOKEN, USERNAME, PASSWORD, CA):
            path = self._folder / key
            try:
                if path.is_file():
                    with path.open("rb") as file:
                        data[key] = file.read(_FILE_LIMIT_BYTES)
            except OSError as error:
                raise ProviderError(f"{where}: {key} cannot be read: {error.strerror}") from error
        return data
