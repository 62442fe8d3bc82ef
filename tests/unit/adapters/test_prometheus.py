# SPDX-License-Identifier: Apache-2.0
"""The provider against a server that answers as scripted: every odd answer is no data or an error."""

import asyncio
import gzip
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from slmops.adapters.prometheus import OwnPrometheus, PrometheusProvider
from slmops.model.observed import MetricQuery, Preset, ProviderSettings, Sample, Samples
from slmops.ports.metrics import ProviderError
from tests.unit.adapters.metrics_server import MetricsServer, Secrets, hang, serve, server_tls

Row = tuple[dict[str, str], str]
DEFAULTS = ProviderSettings()


def preset(kind: Preset) -> MetricQuery:
    return MetricQuery(preset=kind, namespace="shop", deployment="d", revision="r", window_seconds=60)


def promql(text: str, samples: str = "") -> MetricQuery:
    return MetricQuery(
        promql=text,
        samples_promql=samples,
        namespace="shop",
        deployment="d",
        revision="r",
        window_seconds=60,
    )


def vector(rows: Sequence[Row], **more: Any) -> web.Response:
    result = [{"metric": labels, "value": [1700000000, value]} for labels, value in rows]
    return web.json_response({"status": "success", "data": {"resultType": "vector", "result": result}} | more)


@asynccontextmanager
async def prometheus(
    answer: Callable[[str], web.StreamResponse], **more: Any
) -> AsyncIterator[tuple[PrometheusProvider, MetricsServer]]:
    """A provider whose server answers each query by `answer(promql)`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.path == "/prefix/api/v1/query"
        return answer(str((await request.post())["query"]))

    async with serve(handle) as server:
        provider = build(server.url + "/prefix/", **more)
        try:
            yield provider, server
        finally:
            await provider.close()


def build(
    url: str, *, secrets: Secrets | None = None, allowed: tuple[str, ...] = (), **own: str
) -> PrometheusProvider:
    return PrometheusProvider(
        own=OwnPrometheus(url=url, **own), allowed_urls=allowed, secrets=(secrets or Secrets()).reader()
    )


async def read(query: MetricQuery, rows: Sequence[Row]) -> Samples:
    async with prometheus(lambda _: vector(rows)) as (provider, server):
        found = await provider.read(query, DEFAULTS)
        assert len(server.queries) == 1
    return found


def of(variant: str, **labels: str) -> dict[str, str]:
    return {"slm_variant": variant} | labels


async def test_error_rate_by_variant() -> None:
    rows = [
        (of("int4", code="200"), "180.4"),
        (of("int4", code="500"), "20.4"),
        (of("fp32", code="200"), "50"),
    ]
    found = await read(preset(Preset.ERROR_RATE), rows)
    assert found["int4"].samples == 200
    assert found["int4"].value == pytest.approx(20.4 / 200)
    assert found["int4"].events == 20.4
    assert found["fp32"] == Sample(value=0.0, samples=50, events=0.0)


async def test_extrapolated_errors_are_never_more_than_requests() -> None:
    found = await read(preset(Preset.ERROR_RATE), [(of("a", code="503"), "2.9")])
    assert found == {"a": Sample(value=1.0, samples=2, events=2.0)}


@pytest.mark.parametrize("kind", [Preset.LATENCY_P95, Preset.TTFT_P95])
async def test_latency_is_interpolated_from_buckets(kind: Preset) -> None:
    rows = [(of("a", le=bound), count) for bound, count in (("0.1", "0"), ("+Inf", "100"), ("1", "100"))]
    rows += [(of("b", le=bound), count) for bound, count in (("1.0", "10"), ("1", "10"), ("+Inf", "100.7"))]
    found = await read(preset(kind), rows)
    assert found["a"].value == pytest.approx(0.1 + 0.9 * 0.95)
    assert found["a"].buckets == ((0.1, 0.0), (1.0, 100.0), (math.inf, 100.0))
    assert found["a"].samples == 100
    assert found["b"] == Sample(value=1.0, samples=100, buckets=((1.0, 20.0), (math.inf, 100.0)))


async def test_tokens_per_second_and_evaluation_score() -> None:
    rows = [
        (of("a", part="tokens"), "500"),
        (of("a", part="seconds"), "50"),
        (of("a", part="requests"), "25.2"),
        (of("b", part="tokens"), "500"),
    ]
    assert await read(preset(Preset.TOKENS_PER_SECOND), rows) == {"a": Sample(value=10.0, samples=25)}
    rows = [(of("a", part="weighted"), "72"), (of("a", part="cases"), "80"), (of("b", part="cases"), "0")]
    assert await read(preset(Preset.EVALUATION_SCORE), rows) == {"a": Sample(value=0.9, samples=80)}


async def test_feedback_refusals_and_drift() -> None:
    rows = [(of("a", part="weighted"), "30"), (of("a", part="cases"), "40.2"), (of("b", part="cases"), "0")]
    score = (await read(preset(Preset.FEEDBACK_SCORE), rows))["a"]
    assert score.samples == 40 and score.value == pytest.approx(30 / 40.2)
    rows = [(of("a", refused="true"), "3"), (of("a", refused="false"), "9"), (of("b", refused="true"), "0")]
    found = await read(preset(Preset.REFUSAL_RATE), rows)
    assert found == {"a": Sample(value=0.25, samples=12, events=3.0)}
    rows = [
        (of("a", signal="script", part="weighted"), "80"),
        (of("a", signal="script", part="cases"), "400"),
        (of("a", signal="finish", part="weighted"), "10"),
        (of("a", signal="finish", part="cases"), "100"),
        (of("a", signal="made up", part="weighted"), "1000"),
        (of("a", signal="made up", part="cases"), "1"),
    ]
    assert await read(preset(Preset.DRIFT), rows) == {"a": Sample(value=0.2, samples=400)}


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
@pytest.mark.parametrize("kind", [Preset.ERROR_RATE, Preset.LATENCY_P95])
async def test_a_variant_with_a_stale_or_odd_value_is_left_out(kind: Preset, value: str) -> None:
    rows = [
        (of("a", code="200", le="+Inf"), value),
        (of("a", code="500", le="1"), "5"),
        (of("b", code="200", le="+Inf"), "10"),
        (of("b", code="200", le="1"), "10"),
    ]
    assert set(await read(preset(kind), rows)) == {"b"}


@pytest.mark.parametrize("rows", [[], [({"slm_variant": "a", "code": "200", "le": "+Inf"}, "0")]])
async def test_no_evidence_is_no_data(rows: list[Row]) -> None:
    for kind in (Preset.ERROR_RATE, Preset.LATENCY_P95, Preset.TTFT_P95):
        assert await read(preset(kind), rows) == {}


async def test_restarts_are_nobody_s_to_ask_for() -> None:
    provider = build("http://127.0.0.1:1")
    for kind in (Preset.RESTARTS, Preset.OOM_KILLS):
        with pytest.raises(ValueError, match="read off the pods"):
            await provider.read(preset(kind), DEFAULTS)
    await provider.close()


# Queries of the user


@pytest.mark.parametrize("values", [(), ("NaN",), ("+Inf",), ("-Inf",), ("1", "2")])
async def test_no_single_finite_value_is_no_data(values: tuple[str, ...]) -> None:
    assert await read(promql("up"), [({"n": str(i)}, value) for i, value in enumerate(values)]) == {}


async def test_one_value_is_one_sample_unless_samples_are_asked_for() -> None:
    assert await read(promql("up"), [({"n": "0"}, "0.25")]) == {"": Sample(value=0.25, samples=1)}
    answers = {"value": "0.25", "count": "119.6", "none": "NaN", "zero": "0"}
    async with prometheus(lambda text: vector([({}, answers[text])])) as (provider, _):
        found = await provider.read(promql("value", "count"), DEFAULTS)
        assert found == {"": Sample(value=0.25, samples=119)}
        for samples in ("none", "zero"):
            assert await provider.read(promql("value", samples), DEFAULTS) == {}


async def test_scalars_are_values_and_ranges_are_not() -> None:
    def answer(text: str) -> web.Response:
        result: Any = [1700000000, text] if text != "matrix" else []
        kind = "matrix" if text == "matrix" else "scalar"
        return web.json_response({"status": "success", "data": {"resultType": kind, "result": result}})

    async with prometheus(answer) as (provider, _):
        assert await provider.read(promql("3"), DEFAULTS) == {"": Sample(value=3.0, samples=1)}
        assert await provider.read(promql("NaN"), DEFAULTS) == {}
        with pytest.raises(ProviderError, match="must give one value, it gives a matrix"):
            await provider.read(promql("matrix"), DEFAULTS)
        with pytest.raises(ProviderError, match="a vector was asked for, got scalar"):
            await provider.read(preset(Preset.ERROR_RATE), DEFAULTS)


# Servers that are not well


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (lambda: web.json_response({"status": "error", "errorType": "execution", "error": "too many"},
                                   status=422), "execution: too many"),
        (lambda: web.Response(status=503, text="<html>down</html>"), "HTTP 503 without JSON"),
        (lambda: web.json_response({"status": "success"}, status=500), "HTTP 500"),
        (lambda: web.Response(text='{"status":"success","data":{"resultTy'), "HTTP 200 without JSON"),
        (lambda: web.Response(text="[" * 100_000), "HTTP 200 without JSON"),
        (lambda: web.json_response([1]), "malformed JSON"),
        (lambda: web.json_response({"status": "success"}), "malformed answer"),
        (lambda: web.json_response({"status": "success", "data": {"resultType": "matrix", "result": []}}),
         "got matrix"),
        (lambda: web.json_response({"status": "success", "data": {"resultType": "vector",
                                                                  "result": [{"value": [1, "x"]}]}}),
         "malformed answer"),
        (lambda: web.json_response({"status": "success", "data": {"resultType": "vector", "result": [7]}}),
         "malformed answer"),
        (lambda: vector([({"slm_variant": "a"}, "1")]), "malformed answer"),
        (lambda: web.Response(body=b"x" * (2 << 20)), "too long"),
        (lambda: web.Response(status=302, headers={"Location": "https://u:p@other.example/x"}),
         r"redirects to other\.example, which is not followed"),
        (lambda: web.Response(status=401, text="no"), "HTTP 401: it wants credentials; name a Secret"),
        (lambda: vector([], warnings=["store x is missing"]), "Prometheus warned: store x is missing"),
    ],
)  # fmt: skip
async def test_anything_else_is_an_error_of_the_provider(
    response: Callable[[], web.Response], words: str
) -> None:
    async with prometheus(lambda _: response()) as (provider, server):
        with pytest.raises(ProviderError, match=words) as caught:
            await provider.read(preset(Preset.LATENCY_P95), DEFAULTS)
        assert len(server.requests) == 1
    assert len(str(caught.value)) < 512
    assert "u:p" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["1", "NaN", "x", "a", "200"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metric", "value", "slm_variant", "code", "le"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(_JSON, st.sampled_from(["vector", "scalar", "matrix", "string"]))
def test_no_answer_breaks_the_reader(result: object, kind: str) -> None:
    answer = json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}).encode()

    async def post(*_: object) -> tuple[int, bytes]:
        return 200, answer

    async def ask() -> None:
        provider = build("http://prometheus")
        with patch.object(provider, "_post", post):
            for query in (preset(Preset.ERROR_RATE), preset(Preset.LATENCY_P95), promql("up", "up")):
                try:
                    found = await provider.read(query, DEFAULTS)
                except ProviderError:
                    continue
                for sample in found.values():
                    assert sample.value is not None and math.isfinite(sample.value)

    asyncio.run(ask())


async def test_infos_and_an_empty_list_of_warnings_do_not_matter() -> None:
    rows = [({"slm_variant": "a", "code": "200"}, "3")]
    async with prometheus(lambda _: vector(rows, infos=["a hint"], warnings=[])) as (provider, _):
        found = await provider.read(preset(Preset.ERROR_RATE), DEFAULTS)
        assert found == {"a": Sample(value=0.0, samples=3)}


async def test_a_compressed_answer_is_not_unpacked() -> None:
    def answer(_: str) -> web.Response:
        body = gzip.compress(vector([]).body or b"")  # type: ignore[arg-type]  # bytes, as json_response makes it
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    async with prometheus(answer) as (provider, server):
        with pytest.raises(ProviderError, match="HTTP 200 without JSON"):
            await provider.read(preset(Preset.ERROR_RATE), DEFAULTS)
        assert server.requests[0].headers["Accept-Encoding"] == "identity"


async def test_a_server_that_hangs_is_given_up() -> None:
    async with serve(hang) as server:
        provider = build(server.url)
        started = asyncio.get_running_loop().time()
        with pytest.raises(ProviderError, match=r"no answer within 0\.2 s"):
            await provider.read(preset(Preset.LATENCY_P95), ProviderSettings(timeout_seconds=0.2))
        assert asyncio.get_running_loop().time() - started < 5
        await provider.close()


async def test_unreachable_and_unconfigured_are_errors_that_say_so() -> None:
    provider = build("http://127.0.0.1:1")
    with pytest.raises(ProviderError, match="cannot be reached"):
        await provider.read(preset(Preset.LATENCY_P95), DEFAULTS)
    await provider.close()
    with pytest.raises(ProviderError, match=r"set the chart value prometheus\.url"):
        await build("").read(preset(Preset.LATENCY_P95), DEFAULTS)


# Whom to ask and as whom


async def test_a_deployment_s_own_server_needs_to_be_allowed() -> None:
    async with prometheus(lambda _: vector([])) as (own, server):
        other = ProviderSettings(url=f"{server.url}/prefix", tenant="team-a")
        with pytest.raises(ProviderError, match=r"not allowed: .*prometheus\.allowedURLs"):
            await own.read(preset(Preset.ERROR_RATE), other)
        assert server.requests == []
        provider = build("http://127.0.0.1:1", allowed=(server.url,), tenant="ops")
        assert await provider.read(preset(Preset.ERROR_RATE), other) == {}
        assert server.requests[0].headers["X-Scope-OrgID"] == "team-a"
        assert "Authorization" not in server.requests[0].headers
        # The operator's tenant is for its own server only.
        await provider.read(preset(Preset.ERROR_RATE), ProviderSettings(url=f"{server.url}/prefix"))
        assert "X-Scope-OrgID" not in server.requests[1].headers
        await provider.close()


async def test_credentials_go_over_https_only() -> None:
    async with prometheus(lambda _: vector([]), secrets=Secrets(s={"token": "abc"})) as (provider, server):
        with pytest.raises(ProviderError, match="credentials go over https only"):
            await provider.read(preset(Preset.ERROR_RATE), ProviderSettings(namespace="shop", secret="s"))
        assert server.requests == []


async def test_token_rotation_tls_and_refusal(tmp_path: Path) -> None:
    context, ca = server_tls(tmp_path)
    good = {"token": "new"}
    secrets = Secrets(s={"token": "old", "ca.crt": ca}, none={"token": "new"})

    async def answer(request: web.Request) -> web.StreamResponse:
        known = request.headers.get("Authorization") == f"Bearer {good['token']}"
        return vector([]) if known else web.Response(status=401)

    async with serve(answer, tls=context) as server:
        provider = build("", secrets=secrets, allowed=(server.url,))
        settings = ProviderSettings(namespace="shop", secret="s", url=server.url)
        with pytest.raises(ProviderError, match="HTTP 401: the credentials are wrong") as caught:
            await provider.read(preset(Preset.ERROR_RATE), settings)
        assert "old" not in str(caught.value)
        # What was refused is read anew at once, and what works is kept.
        secrets.data["s"] = {"token": "new", "ca.crt": ca}
        for _ in range(3):
            assert await provider.read(preset(Preset.ERROR_RATE), settings) == {}
        assert secrets.reads == 2
        # Without the authority's certificate nothing is sent.
        asked = len(server.requests)
        untrusting = ProviderSettings(namespace="shop", secret="none", url=server.url)
        with pytest.raises(ProviderError, match=r"not trusted .*ca\.crt of the Secret"):
            await provider.read(preset(Preset.ERROR_RATE), untrusting)
        assert len(server.requests) == asked
        await provider.close()


async def test_own_credentials_stay_with_the_own_server(tmp_path: Path) -> None:
    context, ca = server_tls(tmp_path / "pki")
    folder = tmp_path / "secret"
    folder.mkdir()
    for key, value in {"username": "ops", "password": "pass word", "ca.crt": ca}.items():
        (folder / key).write_text(value + "\n")

    async def answer(_: web.Request) -> web.StreamResponse:
        return vector([])

    async with serve(answer, tls=context) as server:
        secrets = Secrets(s={"token": "mine"}, ca={"ca.crt": ca})
        provider = build(
            server.url,
            secrets=secrets,
            allowed=(server.url,),
            credentials_dir=str(folder),
            tenant="ops",
        )

        async def asked(**settings: str) -> tuple[str | None, str | None]:
            await provider.read(preset(Preset.ERROR_RATE), ProviderSettings(namespace="shop", **settings))  # type: ignore[arg-type]
            headers = server.requests[-1].headers
            return headers.get("Authorization"), headers.get("X-Scope-OrgID")

        assert await asked() == ("Basic b3BzOnBhc3Mgd29yZA==", "ops")
        # With a Secret of its own a deployment is itself, and the server's authority still counts.
        assert await asked(secret="s", tenant="team-a") == ("Bearer mine", "team-a")
        assert await asked(secret="s") == ("Bearer mine", None)
        # Another URL never gets the operator's credentials, even if it is the same server.
        assert await asked(secret="ca", url=server.url) == (None, None)
        sent = len(server.requests)
        with pytest.raises(ProviderError, match="not trusted"):
            await asked(url=server.url)
        assert len(server.requests) == sent
        with pytest.raises(ProviderError, match="team-b cannot be read as the operator, which is tenant ops"):
            await asked(tenant="team-b")
        assert await asked(tenant="ops") == ("Basic b3BzOnBhc3Mgd29yZA==", "ops")
        await provider.close()
        without = build(server.url, credentials_dir=str(folder))
        with pytest.raises(ProviderError, match="team-b cannot be read with the operator's credentials"):
            await without.read(preset(Preset.ERROR_RATE), ProviderSettings(tenant="team-b"))
        await without.close()


async def test_the_operator_s_tenant_is_kept_without_credentials_too() -> None:
    async with prometheus(lambda _: vector([]), tenant="ops") as (provider, server):
        await provider.read(preset(Preset.ERROR_RATE), ProviderSettings(tenant="ops"))
        with pytest.raises(ProviderError, match="team-b cannot be read as the operator"):
            await provider.read(preset(Preset.ERROR_RATE), ProviderSettings(tenant="team-b"))
        assert [r.headers["X-Scope-OrgID"] for r in server.requests] == ["ops"]
    async with prometheus(lambda _: vector([])) as (provider, server):
        await provider.read(preset(Preset.ERROR_RATE), ProviderSettings(tenant="team-b"))
        assert [r.headers["X-Scope-OrgID"] for r in server.requests] == ["team-b"]


async def test_own_credentials_are_not_sent_without_tls(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    async with prometheus(lambda _: vector([]), credentials_dir=str(tmp_path)) as (provider, server):
        with pytest.raises(ProviderError, match="credentials go over https only"):
            await provider.read(preset(Preset.ERROR_RATE), DEFAULTS)
        assert server.requests == []
