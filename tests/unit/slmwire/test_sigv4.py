# SPDX-License-Identifier: Apache-2.0
"""Signatures against the examples of the Amazon S3 API reference."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from slmwire.sigv4 import EMPTY_SHA256, sign_get

NOW = datetime(2013, 5, 24, tzinfo=UTC)
KEYS: dict[str, Any] = {
    "region": "us-east-1",
    "access_key": "AKIAIOSFODNN7EXAMPLE",
    "secret_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}
BUCKET = "https://examplebucket.s3.amazonaws.com"


def signature(url: str, *, headers: dict[str, str] | None = None, method: str = "GET") -> str:
    added = sign_get(url, now=NOW, extra_headers=headers, method=method, **KEYS)
    return added["Authorization"].rpartition("Signature=")[2]


def test_example_get_object_with_range() -> None:
    added = sign_get(f"{BUCKET}/test.txt", now=NOW, extra_headers={"Range": "bytes=0-9"}, **KEYS)
    assert added == {
        "x-amz-content-sha256": EMPTY_SHA256,
        "x-amz-date": "20130524T000000Z",
        "Authorization": (
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
            "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
            "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        ),
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
        ("prefix=J&max-keys=2", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_example_bucket_queries(query: str, expected: str) -> None:
    assert signature(f"{BUCKET}/?{query}") == expected


def test_the_default_port_is_not_signed_but_another_is() -> None:
    assert signature(f"{BUCKET}:443/a") == signature(f"{BUCKET}/a")
    assert signature(f"{BUCKET}:9000/a") != signature(f"{BUCKET}/a")
    assert signature("http://127.0.0.1:80/a") == signature("http://127.0.0.1/a")


def test_a_path_is_encoded_once() -> None:
    assert signature(f"{BUCKET}/a%20b%2Bc") == signature(f"{BUCKET}/a b+c")
    assert signature(f"{BUCKET}/a%2520b") != signature(f"{BUCKET}/a%20b")


def test_method_headers_and_session_token_are_part_of_the_signature() -> None:
    plain = signature(f"{BUCKET}/a")
    assert signature(f"{BUCKET}/a", method="HEAD") != plain
    assert signature(f"{BUCKET}/a", headers={"Range": "bytes=1-"}) != plain
    added = sign_get(f"{BUCKET}/a", now=NOW, session_token="t0k", **KEYS)
    assert added["x-amz-security-token"] == "t0k"
    assert "x-amz-security-token" in added["Authorization"]


def test_time_is_utc_whatever_zone_it_comes_in() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=2)))
    assert sign_get(f"{BUCKET}/a", now=there, **KEYS) == sign_get(f"{BUCKET}/a", now=NOW, **KEYS)
    with pytest.raises(ValueError, match="time zone"):
        sign_get(f"{BUCKET}/a", now=datetime(2013, 5, 24), **KEYS)  # noqa: DTZ001


def test_example_put_object() -> None:
    headers = {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"}
    added = sign_get(
        f"{BUCKET}/test%24file.text",
        now=NOW,
        extra_headers=headers,
        method="PUT",
        body_sha256=hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
        **KEYS,
    )
    assert added["x-amz-content-sha256"].startswith("44ce7dd67c959e0d")
    assert added["Authorization"].endswith(
        "Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    )
