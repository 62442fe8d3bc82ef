# SPDX-License-Identifier: Apache-2.0
"""The allow-list cannot be talked around."""

import pytest

from slmops.model.urls import is_allowed_url

ALLOWED = ("https://metrics.example/team-a/", "http://prometheus.monitoring:9090")


@pytest.mark.parametrize(
    "url",
    [
        "https://metrics.example/team-a",
        "https://METRICS.example:443/team-a/prometheus",
        "http://prometheus.monitoring:9090",
        "http://prometheus.monitoring:9090/",
        "http://prometheus.monitoring:9090/any/path",
    ],
)
def test_below_a_prefix(url: str) -> None:
    assert is_allowed_url(url, ALLOWED)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "metrics.example/team-a",
        "http://metrics.example/team-a",
        "https://metrics.example",
        "https://metrics.example/team-ab",
        "https://metrics.example/team-a/../team-b",
        "https://metrics.example/team-a/..;/team-b",
        "https://metrics.example/team-a/..;x=y/team-b",
        "https://metrics.example/team-a/%2e%2E/team-b",
        "https://metrics.example/team-a/%2f../team-b",
        "https://metrics.example/team-a/%252e%252e/team-b",
        "https://metrics.example/team-a\\..\\team-b",
        "https://metrics.example:8443/team-a",
        "https://metrics.example.evil/team-a",
        "https://metrics.example@evil/team-a",
        "https://evil#@metrics.example/team-a",
        "http://prometheus.monitoring:90901",
        "http://prometheus.monitoring:9090?x=y",
        "http://prometheus.monitoring:port",
        "http://prometheus.monitoring:9090\n",
        "file:///etc/passwd",
    ],
)
def test_beside_every_prefix(url: str) -> None:
    assert not is_allowed_url(url, ALLOWED)


def test_nothing_is_allowed_by_nothing() -> None:
    assert not is_allowed_url("https://metrics.example", ())
    assert not is_allowed_url("https://metrics.example", ("", "https://", "metrics.example"))
