# SPDX-License-Identifier: Apache-2.0
"""How the source is told who asks. What is said here goes to the source's own origin only."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from slmfetch.config import Auth, Settings
from slmfetch.connect import Session
from slmfetch.errors import FetchError
from slmwire.reasons import Reason
from slmwire.sigv4 import sign_get


class Access(Protocol):
    """Credentials of one source; several threads may use it at once.

    Files are read afresh for every request: a Secret may be rotated meanwhile.
    """

    def headers(self, url: str) -> dict[str, str]:
        """What to add to a GET of `url`; FetchError when a credential cannot be used."""
        ...

    def answer(self, url: str, challenges: Sequence[str], *, sent: str, session: Session) -> bool:
        """After a 401 with these WWW-Authenticate headers: whether asking again may help.

        `sent` is the Authorization header that was refused. FetchError when a token service fails.
        """
        ...

    def refusal(self, *, sent: str) -> str:
        """What was refused and the cure, for a message."""
        ...


class _Fixed:
    """Credentials that need no conversation."""

    def answer(self, _url: str, _challenges: Sequence[str], *, sent: str, session: Session) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Bearer(_Fixed):
    """A token in a file; without one, anonymous."""

    token_file: Path | None

    def headers(self, _url: str) -> dict[str, str]:
        token = read_secret(self.token_file, what="token") if self.token_file is not None else ""
        return {"Authorization": f"Bearer {token}"} if token else {}

    def refusal(self, *, sent: str) -> str:
        what = "the token was refused" if sent else "no token was given"
        return f"{what}; name a Secret with a valid token in secretRef"


@dataclass(frozen=True, slots=True)
class Basic(_Fixed):
    """User name and password in files; without them, anonymous."""

    folder: Path

    def headers(self, _url: str) -> dict[str, str]:
        user = read_text(self.folder / "username", what="username")
        password = read_text(self.folder / "password", what="password")
        return {"Authorization": basic(user, password)} if user or password else {}

    def refusal(self, *, sent: str) -> str:
        what = "username and password were refused" if sent else "no username and password were given"
        return f"{what}; name a Secret with valid ones in secretRef"


@dataclass(frozen=True, slots=True)
class S3(_Fixed):
    """Signed requests; without keys, anonymous."""

    folder: Path
    region: str

    def headers(self, url: str) -> dict[str, str]:
        access = read_secret(self.folder / "accessKeyId", what="accessKeyId")
        secret = read_secret(self.folder / "secretAccessKey", what="secretAccessKey")
        if not access or not secret:
            return {}
        return sign_get(
            url,
            region=self.region,
            access_key=access,
            secret_key=secret,
            session_token=read_secret(self.folder / "sessionToken", what="sessionToken"),
            now=datetime.now(UTC),
        )

    def refusal(self, *, sent: str) -> str:
        if not sent:
            return "no keys were given; name a Secret with accessKeyId and secretAccessKey in secretRef"
        return (
            f"the signature for region {self.region!r} was refused; check the keys in the Secret that "
            "secretRef names, the region and the node's clock"
        )


def build_access(settings: Settings) -> Access:
    """The credentials that the settings name."""
    if settings.auth is Auth.OCI:
        from slmfetch.oci import Oci

        return Oci(settings.source_dir)
    if settings.auth is Auth.S3:
        return S3(settings.source_dir, settings.s3_region)
    if settings.auth is Auth.BASIC:
        return Basic(settings.source_dir)
    return Bearer(settings.token_file)


def basic(user: str, password: str) -> str:
    """Authorization header of RFC 7617."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def read_secret(path: Path, *, what: str) -> str:
    """One word from a file, "" when it is missing; FetchError when no HTTP header may carry it."""
    text = _read(path, what=what).strip()
    if not all(0x21 <= byte <= 0x7E for byte in text):
        raise FetchError(
            Reason.ACCESS_DENIED,
            f"the {what} holds characters that no HTTP header may carry; put the bare {what} in the Secret",
        )
    return text.decode("ascii")


def read_text(path: Path, *, what: str) -> str:
    """Text from a file without the line's end, "" when it is missing."""
    try:
        return _read(path, what=what).decode().rstrip("\r\n")
    except ValueError as error:
        raise FetchError(Reason.ACCESS_DENIED, f"the {what} in the Secret is not UTF-8 text") from error


def _read(path: Path, *, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise FetchError(Reason.ACCESS_DENIED, f"the {what} cannot be read: {error.strerror}") from error
