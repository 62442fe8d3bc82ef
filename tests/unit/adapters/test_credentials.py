# SPDX-License-Identifier: Apache-2.0
"""Credentials: every wrong Secret is named with its key and the cure, and nothing leaks."""

from pathlib import Path

import pytest

from slmops.adapters.credentials import CACHE_SECONDS, Credentials, FileCredentials, parse_credentials
from slmops.adapters.errors import Forbidden, Unavailable
from slmops.adapters.sessions import IDLE_SECONDS, MOST_SESSIONS, SessionPool
from slmops.ports.metrics import ProviderError
from tests.unit.adapters.metrics_server import Secrets, server_tls


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "none of the keys token, username, ca.crt"),
        ({"tokn": b"x"}, "none of the keys"),
        ({"token": b" \n"}, "token is empty"),
        ({"token": b"\xff\xfe"}, "token is not text"),
        ({"token": b"top secret"}, "token holds a space"),
        ({"token": b"a\r\nX-Scope-OrgID: b"}, "token holds a space, a line break"),
        ({"token": b"a", "username": b"b", "password": b"c"}, "keep one of the two"),
        ({"username": b"b"}, "no key password"),
        ({"password": b"c"}, "no key username"),
        ({"username": b"b:c", "password": b"d"}, "username must hold no colon"),
        ({"username": b"b", "password": b"d\ne"}, "no line breaks"),
        ({"token": b"a", "ca.crt": b"not a certificate"}, "ca.crt holds no PEM"),
    ],
)
def test_wrong_keys_are_named_and_their_values_are_not(data: dict[str, bytes], words: str) -> None:
    with pytest.raises(ProviderError, match=words) as caught:
        parse_credentials(data, where="Secret shop/prom")
    assert str(caught.value).startswith("Secret shop/prom")
    assert "top secret" not in str(caught.value)


def test_headers_and_what_is_shown() -> None:
    token = parse_credentials({"token": b"abc\n"}, where="x")
    assert token.headers() == {"Authorization": "Bearer abc"}
    pair = parse_credentials({"username": b"u", "password": "pä:s ".encode()}, where="x")
    assert pair.headers() == {"Authorization": "Basic dTpww6Q6cyA="}
    assert Credentials(ca="x").headers() == {} and not Credentials(ca="x").signs_in
    assert token.signs_in and pair.signs_in
    assert repr(token) == repr(pair) == "Credentials()"


async def test_a_secret_is_kept_for_a_short_while() -> None:
    time = [0.0]
    secrets = Secrets(prom={"token": "one"})
    reader = secrets.reader(lambda: time[0])
    assert (await reader.read("shop", "prom")).token == "one"
    secrets.data["prom"] = {"token": "two"}
    time[0] = CACHE_SECONDS - 1
    assert (await reader.read("shop", "prom")).token == "one"
    time[0] = CACHE_SECONDS
    assert (await reader.read("shop", "prom")).token == "two"
    assert secrets.reads == 2
    reader.forget("shop", "prom")
    await reader.read("shop", "prom")
    assert secrets.reads == 3


async def test_few_secrets_are_kept_and_old_ones_make_room() -> None:
    time = [0.0]
    secrets = Secrets(**{f"s{i}": {"token": "x"} for i in range(300)})
    reader = secrets.reader(lambda: time[0])
    for i in range(300):
        await reader.read("shop", f"s{i}")
    assert len(reader._known) == 256
    time[0] = CACHE_SECONDS
    for _ in range(2):
        await reader.read("shop", "s299")
    assert (secrets.reads, len(reader._known)) == (301, 1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, "Secret shop/gone does not exist: create it with the key token"),
        (
            Forbidden("no", status=403),
            r"may not read Secret shop/gone: set the chart value rbac\.readSecrets",
        ),
        (Unavailable("down"), "Secret shop/gone cannot be read: down"),
    ],
)
async def test_a_secret_that_cannot_be_had(error: Exception | None, words: str) -> None:
    secrets = Secrets()
    secrets.error = error
    reader = secrets.reader()
    for _ in range(2):  # and a failure is not kept
        with pytest.raises(ProviderError, match=words):
            await reader.read("shop", "gone")
    assert secrets.reads == 2


async def test_a_value_that_is_not_base64(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(*_: object, **__: object) -> dict[str, object]:
        return {"data": {"token": "!!!"}}

    secrets = Secrets()
    monkeypatch.setattr(secrets, "get", get)
    with pytest.raises(ProviderError, match="token is not base64"):
        await secrets.reader().read("shop", "prom")


def test_mounted_files_are_taken_as_they_rotate(tmp_path: Path) -> None:
    time = [0.0]
    reader = FileCredentials(str(tmp_path), now=lambda: time[0])
    with pytest.raises(ProviderError, match=r"prometheus\.existingSecret\) has none of the keys"):
        reader.read()
    (tmp_path / "token").write_text("one\n")
    assert reader.read().token == "one"
    (tmp_path / "token").write_text("two\n")
    assert reader.read().token == "one"
    time[0] = CACHE_SECONDS
    assert reader.read().token == "two"
    (tmp_path / "token").write_text("three\n")
    reader.forget()
    assert reader.read().token == "three"


async def test_sessions_are_shared_bounded_and_closed_when_idle(tmp_path: Path) -> None:
    time = [0.0]
    pool = SessionPool(now=lambda: time[0])
    # White space around makes them different sets of the same certificate.
    certificates = [server_tls(tmp_path)[1] + "\n" * i for i in range(MOST_SESSIONS + 3)]
    async with pool.use("") as first, pool.use("") as second:
        assert first is second
    for certificate in certificates:
        time[0] += 1
        async with pool.use(certificate):
            assert pool.size <= MOST_SESSIONS + 1
    assert first.closed
    async with pool.use(certificates[0]) as busy:
        time[0] += IDLE_SECONDS
        async with pool.use(certificates[1]):
            assert pool.size == 2 and not busy.closed
    await pool.close()
    assert busy.closed and pool.size == 0


async def test_a_certificate_that_cannot_be_read_is_an_error_of_the_provider() -> None:
    pool = SessionPool()
    with pytest.raises(ProviderError, match=r"ca\.crt"):
        async with pool.use("-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"):
            raise AssertionError
