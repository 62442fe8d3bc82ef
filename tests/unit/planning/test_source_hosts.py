# SPDX-License-Identifier: Apache-2.0
"""Which hosts sources may name: the administrator's list, and what it is held against."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmops.api import SLMDeploymentSpec, SLMModelSpec
from slmops.api.source import Source
from slmops.model.config import OperatorConfig
from slmops.model.hosts import HostPort, is_allowed_host, is_host_entry, read_host
from slmops.planning.slmmodel.validate import _CHECKS as MODEL_CHECKS
from slmops.planning.source_hosts import find_host_problem, find_variant_host_problem
from tests.unit.planning.fleet_spec import spec_body

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PORTS = st.integers(1, 65535)


def allowing(*hosts: str) -> OperatorConfig:
    return OperatorConfig(runtime_image="r", allowed_source_hosts=hosts)


@pytest.mark.parametrize(
    ("entry", "host", "port", "allowed"),
    [
        ("models.example.com", "models.example.com", 443, True),
        ("models.example.com", "models.example.com", 8443, True),
        ("models.example.com:443", "models.example.com", 8443, False),
        ("Models.Example.COM", "models.example.com", 443, True),
        ("models.example.com", "models.example.com.evil.net", 443, False),
        ("models.example.com", "amodels.example.com", 443, False),
        ("*.example.com", "models.example.com", 443, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "evilexample.com", 443, False),
        ("*.example.com:8443", "models.example.com", 443, False),
        ("192.0.2.10", "192.0.2.10", 80, True),
        ("192.0.2.1", "192.0.2.10", 80, False),
        ("*.2.10", "192.0.2.10", 80, False),
        ("[2001:db8::1]", "2001:db8:0:0::1", 443, True),
        ("[2001:db8::1]:80", "2001:db8::1", 443, False),
    ],
)
def test_an_entry(entry: str, host: str, port: int, allowed: bool) -> None:
    assert is_allowed_host(HostPort(host=host, port=port), [entry]) is allowed


@given(name=NAMES, port=PORTS, others=st.lists(NAMES, max_size=3))
def test_only_named_hosts_pass(name: str, port: int, others: list[str]) -> None:
    target = HostPort(host=name, port=port)
    assert is_allowed_host(target, []), "an empty list allows everything"
    assert is_allowed_host(target, [*others, name]) and is_allowed_host(target, [f"{name}:{port}"])
    if name not in others and others:
        assert not is_allowed_host(target, others)


@pytest.mark.parametrize(
    "entry",
    ["", "*", "*.", "http://a", "a/b", "a b", "a:0", "a:99999", "[::1", "[zz]", "*a.b", "a..b", "a.*"],
)
def test_what_is_no_entry(entry: str) -> None:
    assert not is_host_entry(entry)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://A.example.com./x", "a.example.com:443"),
        ("http://a:81", "a:81"),
        ("HTTP://a?x=http://b/", "a:80"),
        ("https://[2001:DB8::1]/x", "[2001:db8::1]:443"),
        ("https://user@a/x", None),
        ("https://a%2eb/x", None),
        ("https://a\\@b/x", None),
        ("https://a:0/x", None),
        ("file:///a", None),
        ("", None),
    ],
)
def test_whom_a_url_names(url: str, shown: str | None) -> None:
    host = read_host(url)
    assert (str(host) if host is not None else None) == shown


SOURCES: list[tuple[dict[str, Any], str, str]] = [
    ({"http": {"url": "https://models.example.com/m.json"}}, "models.example.com:443", "http.url"),
    ({"hf": {"repo": "a/b"}}, "huggingface.co:443", "hf.endpoint"),
    ({"hf": {"repo": "a/b", "endpoint": "http://hub.local:8080"}}, "hub.local:8080", "hf.endpoint"),
    ({"oci": {"image": "registry.example.com:5000/m:1"}}, "registry.example.com:5000", "oci.image"),
    ({"oci": {"image": "docker.io/library/m:1"}}, "registry-1.docker.io:443", "oci.image"),
    ({"oci": {"image": "r.local/m:1", "plainHttp": True}}, "r.local:80", "oci.image"),
    (
        {"s3": {"bucket": "abc", "prefix": "m/", "region": "eu-west-1"}},
        "s3.eu-west-1.amazonaws.com:443",
        "s3.endpoint",
    ),
    ({"s3": {"bucket": "abc", "prefix": "m/", "endpoint": "http://minio:9000"}}, "minio:9000", "s3.endpoint"),
]


@pytest.mark.parametrize(("body", "host", "field"), SOURCES)
def test_each_kind_of_source_is_held_to_the_list(body: dict[str, Any], host: str, field: str) -> None:
    source = Source.model_validate(body)
    assert find_host_problem("spec.source", source, allowing(host)) is None
    assert find_host_problem("spec.source", source, allowing()) is None
    finding = find_host_problem("spec.source", source, allowing("other.example.com"))
    assert finding is not None and finding.reason == "SourceHostNotAllowed"
    assert finding.message.startswith(f"spec.source.{field}: {host} is not among the allowed hosts other.")
    assert "allowedSourceHosts" in finding.message


def test_files_of_nodes_and_volumes_have_no_host() -> None:
    files = [{"path": "a", "size": 1, "sha256": "0" * 64}]
    for body in ({"file": {"path": "/x", "files": files}}, {"pvc": {"claimName": "c", "files": files}}):
        assert find_host_problem("spec.source", Source.model_validate(body), allowing("a")) is None


def test_a_deployment_names_the_variant() -> None:
    spec = SLMDeploymentSpec.model_validate(spec_body())
    finding = find_variant_host_problem(spec, allowing("models.example.com"))
    assert finding is not None and finding.message.startswith("spec.variants[0].source.http.url: models:80")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"source": {"http": {"url": "https://bad/m"}}}, "spec.source.http.url: bad:443"),
        (
            {"evaluation": {"dataset": {"http": {"url": "https://bad/d"}}, "metric": "Perplexity"}},
            "spec.evaluation.dataset.http.url: bad:443",
        ),
        ({"publish": {"oci": {"image": "bad.local/m"}}}, "spec.publish.oci.image: bad.local:443"),
        (
            {"publish": {"s3": {"bucket": "abc", "endpoint": "http://bad"}}},
            "spec.publish.s3.endpoint: bad:80",
        ),
    ],
)
def test_a_model_s_sources_datasets_and_targets(change: dict[str, Any], where: str) -> None:
    body = {"source": {"http": {"url": "https://good/m"}}, "recipes": [{"name": "plain"}]} | change
    spec = SLMModelSpec.model_validate(body)
    found = [f for check in MODEL_CHECKS if (f := check(spec, allowing("good"))) is not None]
    assert found and found[0].reason == "SourceHostNotAllowed" and found[0].message.startswith(where)
