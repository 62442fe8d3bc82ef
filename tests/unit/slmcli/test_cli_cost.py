# SPDX-License-Identifier: Apache-2.0
"""`cost`: from counters to energy and money, what is left out, and a real server's counters."""

import contextlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from e2e.rig.pki import Authority
from slmcli.__main__ import run
from slmcli.cost.collect import NotCounted
from slmcli.cost.estimate import PodUse, estimate_costs
from slmcli.cost.meters import Meter, parse_meter
from slmcli.cost.prices import CloudPrice, DevicePrice, Prices, Watts, read_prices, read_watts
from slmcli.errors import CliError, ForbiddenError, UnreachableError, UsageError
from slmcli.render.cost import amount_text, count_text
from slmcli.render.cost_metrics import cost_metrics
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import (
    EVIL,
    NOW,
    STABLE,
    UPDATE,
    Body,
    ago,
    build_body,
    build_node,
    build_status,
)
from tests.unit.slmcli.cli_server import ScriptedApi, serve, write_kubeconfig
from tests.unit.slmcli.test_cli_chat import build_server_pod
from tests.unit.slmserve.process import ORDERS, ServerProcess

HOUR, DAY = 3600.0, 86400.0
PRICES = Prices(
    currency="EUR",
    per_kilowatt_hour=0.5,
    devices={"pi": DevicePrice(price=87.66, years=1), "default": DevicePrice(price=876.6, years=2)},
    cloud=CloudPrice(per_million_input=1, per_million_output=2),
)
WATTS = {"pi": Watts(idle=2, busy=10)}


def _use(node: str = "n1", *, name: str = "orders", site: str = "s", profile: str = "pi",
         seconds: float = HOUR, tokens: tuple[float, float] = (0, 0), busy: float = 0) -> PodUse:  # fmt: skip
    meter = Meter(input_tokens=tokens[0], output_tokens=tokens[1], request_seconds=busy)
    return PodUse(
        deployment=("shop", name), node=node, site=site, profile=profile, seconds=seconds, meter=meter
    )


def test_a_day_of_one_device_by_hand() -> None:
    use = _use(seconds=2 * HOUR, tokens=(20_000, 10_000), busy=HOUR)
    ((row,), total) = estimate_costs([use], period_seconds=DAY, watts=WATTS, prices=PRICES)
    costs = row.costs
    assert total == costs and row.site == "s"
    assert (costs.input_tokens, costs.output_tokens) == pytest.approx((240_000, 120_000))
    assert costs.busy_share == pytest.approx(0.5)
    # 2 W at rest and 8 W more for half of the time are 6 W.
    assert costs.kilowatt_hours == pytest.approx(0.144)
    assert costs.energy == pytest.approx(0.072)
    # 87.66 over the 8766 hours of a year is a cent an hour.
    assert costs.devices == pytest.approx(0.24)
    assert costs.total == pytest.approx(0.312)
    assert costs.per_thousand_tokens == pytest.approx(0.312 / 360)
    assert costs.cloud == pytest.approx(0.24 + 0.24)


def test_what_is_not_known_stays_unknown() -> None:
    use = _use(tokens=(1, 1))
    _, bare = estimate_costs([use], period_seconds=DAY, watts={}, prices=None)
    assert (bare.kilowatt_hours, bare.energy, bare.devices, bare.total, bare.cloud) == (None,) * 5
    assert bare.per_thousand_tokens is None
    no_power = Prices(currency="EUR", devices=PRICES.devices)
    _, part = estimate_costs([use], period_seconds=DAY, watts=WATTS, prices=no_power)
    assert part.kilowatt_hours is not None and part.devices is not None
    assert (part.energy, part.total, part.cloud) == (None, None, None)
    # One device without watts makes the sum unknown; a default gives it some.
    pair = [use, _use("n2", profile="")]
    assert estimate_costs(pair, period_seconds=DAY, watts=WATTS, prices=PRICES)[1].energy is None
    known = WATTS | {"default": Watts(idle=1, busy=1)}
    assert estimate_costs(pair, period_seconds=DAY, watts=known, prices=PRICES)[1].energy is not None
    assert estimate_costs([], period_seconds=DAY, watts=WATTS, prices=PRICES)[1].nodes == 0


def test_two_servers_on_a_device_are_one_device() -> None:
    pods = [_use(busy=3000), _use(busy=3000)]
    _, total = estimate_costs(pods, period_seconds=HOUR, watts=WATTS, prices=PRICES)
    assert (total.nodes, total.pods, total.busy_share) == (1, 2, 1.0)
    assert total.kilowatt_hours == pytest.approx(0.01) and total.devices == pytest.approx(0.01)


_USES = st.lists(
    st.builds(
        _use,
        st.sampled_from(["n1", "n2", "n3"]),
        name=st.sampled_from(["orders", "chat"]),
        seconds=st.floats(60, 1e7),
        tokens=st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)),
        busy=st.floats(0, 1e8),
    ),
    min_size=1,
    max_size=8,
)


@given(_USES, st.floats(60, 1e7))
def test_deployments_together_cost_what_their_devices_cost(uses: list[PodUse], period: float) -> None:
    rows, total = estimate_costs(uses, period_seconds=period, watts=WATTS, prices=PRICES)
    nodes = len({use.node for use in uses})
    assert total.devices == pytest.approx(nodes * 0.01 * period / HOUR)
    for name in ("devices", "energy", "kilowatt_hours", "cloud", "input_tokens"):
        parts = [getattr(row.costs, name) for row in rows]
        assert sum(parts) == pytest.approx(getattr(total, name))
    assert 0 <= total.busy_share <= 1
    least = nodes * 2 / 1000 * period / HOUR
    assert total.kilowatt_hours is not None and total.kilowatt_hours >= least * (1 - 1e-9)


def build_metrics(inputs: float, outputs: float, seconds: float) -> str:
    """An exposition with what counts and something else."""
    labels = '{slm_deployment="orders",slm_node="a } b"}'
    return (
        "# HELP slmserve_generated_tokens_total Tokens.\n"
        f"slmserve_generated_tokens_total{labels} {outputs}\n"
        f"slmserve_prompt_tokens_total{labels} {inputs} 1772366400000\n"
        f'slmserve_request_duration_seconds_sum{{endpoint="chat"}} {seconds}\n'
        'slmserve_request_duration_seconds_sum{endpoint="completions"} 1\n'
        f"slmserve_prompt_tokens_total_more{labels} 99\n"
    )


def test_counters_are_read() -> None:
    meter = parse_meter(build_metrics(3, 4.5e3, 6))
    assert meter == Meter(input_tokens=3, output_tokens=4500, request_seconds=7)
    bare = parse_meter("slmserve_prompt_tokens_total 1\nslmserve_generated_tokens_total 2\n")
    assert bare.output_tokens == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>",
        "slmserve_generated_tokens_total 1\n",
        build_metrics(-1, 1, 1),
        build_metrics(float("nan"), 1, 1),
        "slmserve_generated_tokens_total{a=\n",
        "\n" * 30_000,
    ],
)
def test_what_is_no_exposition_is_an_error(text: str) -> None:
    with pytest.raises(UnreachableError):
        parse_meter(text)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(CliError):
        parse_meter("slmserve_prompt_tokens_total" + text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("currency: EUR\nperKilowattHours: 1\n", "perKilowattHours"),
        ("perKilowattHour: 1\n", "currency"),
        ("currency: EUR\ndevices: {pi: {price: 1, years: 0}}\n", "devices.pi.years"),
        ("currency: EUR\ndevices: {pi: {price: .inf, years: 1}}\n", "devices.pi.price"),
        ("currency: EUR\ncloud: {perMillionInput: 1}\n", "cloud.perMillionOutput"),
        ("- 1\n", "must be a map"),
        ("{", "is not YAML"),
        (None, "cannot be read"),
    ],
)
def test_prices_that_cannot_be_used_name_the_field(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "prices.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_prices(path)


def test_the_files_of_the_docs_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/cost.md").read_text()
    prices, watts = (block.partition("```")[0] for block in text.split("```yaml\n")[1:3])
    path = tmp_path / "f.yaml"
    path.write_text(prices)
    assert read_prices(path).cloud is not None
    path.write_text(watts)
    assert read_watts(path)["default"].busy > 0
    path.write_text("pi: {idle: 1}\n")
    with pytest.raises(UsageError, match=r"pi: busy"):
        read_watts(path)


def _pod(node: str, revision: str = STABLE, *, seconds: float = HOUR, **more: Any) -> Body:
    body = build_server_pod(node, revision, **more)
    body["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": ago(seconds)}}
    return body


@pytest.fixture
def cluster() -> ScriptedCluster:
    found = ScriptedCluster()
    found.put(build_body(build_status()))
    found.fleet = [build_node("n1"), build_node("n2"), build_node("n3", site="wien")]
    found.fleet[2]["metadata"]["labels"]["board"] = "pi"
    found.running = [_pod("n1"), _pod("n2", UPDATE, seconds=20), _pod("n3"), _pod("n4", ready=False)]
    found.texts = {
        f"orders-{STABLE}-n1": build_metrics(1e6, 2e6, 1799),
        f"orders-{STABLE}-n3": build_metrics(3e6, 4e6, 3599),
    }
    power = {"idle": "2", "busy": "10"}
    selector = {"matchLabels": {"board": "pi"}}
    found.blueprints = [{"metadata": {"name": "pi"}, "spec": {"nodeSelector": selector, "powerWatts": power}}]
    return found


@pytest.fixture
def prices(tmp_path: Path) -> str:
    path = tmp_path / "prices.yaml"
    body = PRICES.model_dump(by_alias=True, exclude_none=True)
    path.write_text(yaml.safe_dump(body))
    return str(path)


def test_the_table(
    cluster: ScriptedCluster, prices: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "watts.yaml").write_text("default: {idle: 1, busy: 1}\n")
    argv = ["cost", "orders", "--prices", prices, "--watts", str(tmp_path / "watts.yaml"), "--period", "1h"]
    ran = run_cli(cluster, *argv, capsys=capsys)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("per 60m at the mean rates") and "estimates" in lines[0]
    assert lines[1].split()[:6] == ["SITE", "NODES", "RUNNING", "INPUT", "OUTPUT", "BUSY<="]
    assert lines[2].split() == ["berlin", "1", "60m", "1M", "2M", "50%", "0.001", "0.0005", "0.05", "0.0505",
                                "1.7e-05", "5"]  # fmt: skip
    assert lines[3].split()[:6] == ["wien", "1", "60m", "3M", "4M", "100%"]
    assert lines[4].split()[:5] == ["all", "2", "60m", "4M", "6M"]
    assert "4M input and 6M output tokens by 2 pod(s)" in lines[5]
    assert any("less than a minute" in line for line in lines) and any("not ready" in line for line in lines)
    document = json.loads(run_cli(cluster, *argv, "-o", "json", capsys=capsys).out)
    assert document["kind"] == "CostReport" and document["currency"] == "EUR"
    assert [item["site"] for item in document["items"]] == ["berlin", "wien"]
    assert document["items"][1]["kilowattHours"] == pytest.approx(0.01)
    assert len(document["notCounted"]) == 2 and document["total"]["pods"] == 2


def test_without_prices_and_rights_there_are_tokens(
    cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden() -> list[Body]:
        raise ForbiddenError("no")

    monkeypatch.setattr(cluster, "nodes", forbidden)
    monkeypatch.setattr(cluster, "profiles", forbidden)
    ran = run_cli(cluster, "cost", "orders", capsys=capsys)
    assert ran.code == 0 and "give --prices" in ran.out
    assert "sites and profiles are not known" in ran.err and "--watts" in ran.err
    (row,) = [line.split() for line in ran.out.splitlines() if line.startswith("- ")]
    assert row[:5] == ["-", "2", "60m", "96M", "144M"] and row[6:] == ["-"] * 6


def test_pods_that_do_not_answer(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.texts[f"orders-{STABLE}-n1"] = UnreachableError(f"cannot reach {EVIL}".replace("\r\n", " "))
    ran = run_cli(cluster, "cost", "orders", capsys=capsys)
    assert ran.code == 0 and "cannot reach" in ran.out
    cluster.texts = {pod: ForbiddenError("get of pods/proxy") for pod in cluster.texts}
    ran = run_cli(cluster, "cost", "orders", capsys=capsys)
    assert (ran.code, ran.out) == (3, "") and "pods/proxy" in ran.err
    cluster.running = []
    assert "no serving pod" in run_cli(cluster, "cost", "orders", capsys=capsys).err


def test_all_of_a_namespace(
    cluster: ScriptedCluster, prices: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(build_body(build_status(), name="chat"))
    out = run_cli(cluster, "cost", "--all", "--prices", prices, capsys=capsys).out
    names = [line.split()[0] for line in out.splitlines() if line.startswith("shop/")]
    # The scripted cluster gives both the same pods, so each is charged half of each device.
    assert names == ["shop/chat", "shop/chat", "shop/orders", "shop/orders"]
    document = json.loads(
        run_cli(cluster, "cost", "--all", "--prices", prices, "-o", "json", capsys=capsys).out
    )
    assert document["items"][0]["deviceCost"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    "argv",
    [[], ["orders", "--all"], ["orders", "--period", "1w"], ["orders", "--period", "0s"],
     ["orders", "--period", "nand"], ["orders", "--prices", "/nowhere"]],
)  # fmt: skip
def test_wrong_usage(cluster: ScriptedCluster, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(cluster, "cost", *argv, capsys=capsys).code == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12.4, "12"), (999.4, "999"), (999.6, "1k"), (1500, "1.5k"), (96e6, "96M"), (1e16, "10000T")],
)
def test_counts(value: float, text: str) -> None:
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0, "0"), (1e-7, "1.0e-07"), (0.01234, "0.0123"), (1234.5, "1234")]
)
def test_amounts(value: float | None, text: str) -> None:
    assert amount_text(value) == text


def _tls_flags(directory: Path) -> tuple[str, ...]:
    authority = Authority(directory / "pki")
    authority.create()
    pair = authority.issue("orders", common_name="orders", dns_names=["orders.shop.svc"])
    return ("--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_real_server_behind_an_api_server(
    scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pod = f"orders-{STABLE}-n1"
    flags: tuple[str, ...] = ("--model", "orders", "--evaluate", "false")
    flags += _tls_flags(tmp_path) if scheme == "https" else ()
    with ServerProcess(ORDERS / "v1-int4", tmp_path, *flags) as server, serve(ScriptedApi()) as api:
        server.scheme = scheme
        server.wait_ready()
        body = {"model": "orders", "prompt": "one coffee", "max_tokens": 5, "temperature": 0}
        asked = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30, verify=False)  # noqa: S501
        usage = asked.json()["usage"]
        config = str(write_kubeconfig(tmp_path / "config", api.url))
        api.behind[f"{'https:' if scheme == 'https' else ''}{pod}:8080"] = server.url
        where = "/apis/slmops.dev/v1alpha1/namespaces/shop/slmdeployments/orders"
        api.script(where, (200, build_body(build_status())))
        old = _pod("n1")
        if scheme == "https":
            old["spec"]["containers"][0]["ports"] = [{"name": "https", "containerPort": 8080}]
        old["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = "2026-01-01T00:00:00Z"
        api.script("/api/v1/namespaces/shop/pods", (200, {"items": [old]}))
        api.script("/api/v1/nodes", (200, {"items": [build_node("n1")]}))
        api.script("/apis/slmops.dev/v1alpha1/deviceprofiles", (200, {"items": []}))
        assert run(["cost", "orders", "--kubeconfig", config, "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total"]["countedOutputTokens"] == usage["completion_tokens"]
    assert document["total"]["countedInputTokens"] == usage["prompt_tokens"]
    assert document["total"]["sinceSeconds"] > 0 and NOW > 0


def test_metrics_are_what_a_scraper_reads_and_say_nothing_of_what_is_not_known() -> None:
    use = _use(seconds=2 * HOUR, tokens=(20_000, 10_000), busy=HOUR, site='a"b\\c\nd')
    missed = NotCounted(deployment=("shop", "other"), pod="p", node="n", why="is not ready")
    for prices in (PRICES, None):
        rows, _ = estimate_costs([use], period_seconds=DAY, watts=WATTS, prices=prices)
        text = cost_metrics(rows, [missed], period_seconds=DAY, prices=prices, now=NOW)
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert all(family.type == "gauge" and family.documentation for family in families.values())
        [sample] = families["slmops_cost_input_tokens"].samples
        assert sample.value == pytest.approx(240_000)
        assert (sample.labels["namespace"], sample.labels["deployment"]) == ("shop", "orders")
        assert families["slmops_cost_period_seconds"].samples[0].value == DAY
        left = {s.labels["deployment"]: s.value for s in families["slmops_cost_pods_not_counted"].samples}
        assert left == {"orders": 0, "other": 1}
        costs = rows[0].costs
        assert costs.kilowatt_hours is not None
        energy = families["slmops_cost_energy_joules"].samples[0].value
        assert energy == pytest.approx(costs.kilowatt_hours * 3.6e6)
        assert ("slmops_cost_total_money" in families) is (prices is not None)
        if prices is not None:
            [money] = families["slmops_cost_total_money"].samples
            assert money.value == pytest.approx(costs.total) and money.labels["currency"] == "EUR"


def test_the_command_writes_metrics(cluster: ScriptedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_cli(cluster, "cost", "orders", "-o", "prometheus", capsys=capsys).out
    names = {family.name for family in text_string_to_metric_families(out)}
    assert {"slmops_cost_input_tokens", "slmops_cost_computed_timestamp_seconds"} <= names
    assert "slmops_cost_total_money" not in names
