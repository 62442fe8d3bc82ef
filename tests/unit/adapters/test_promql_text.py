# SPDX-License-Identifier: Apache-2.0
"""The texts of generated queries; tests/apiserver/test_promql.py runs them on a real Prometheus."""

import promql_parser
import pytest

from slmops.adapters.promql import MAX_VARIANTS, Row, build_query, read_rows
from slmops.model.observed import MetricQuery, Preset
from slmops.planning.queries import quote

_MEASURED = [preset for preset in Preset if preset not in (Preset.RESTARTS, Preset.OOM_KILLS)]
_WHO = 'slm_namespace="ns",slm_deployment="orders",slm_revision="abc"'


def _query(preset: Preset, window_seconds: float = 29.2, deployment: str = "orders") -> MetricQuery:
    return MetricQuery(
        preset=preset, namespace="ns", deployment=deployment, revision="abc", window_seconds=window_seconds
    )


def test_error_rate_leaves_out_what_clients_did_wrong() -> None:
    assert build_query(_query(Preset.ERROR_RATE)) == (
        f'sum by (slm_variant,code) (increase(slmserve_requests_total{{{_WHO},code!~"4.."}}[30s]))'
    )


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        (Preset.LATENCY_P95, "slmserve_request_duration_seconds"),
        (Preset.TTFT_P95, "slmserve_time_to_first_token_seconds"),
    ],
)
def test_latencies_are_buckets_of_all_pods_of_a_variant(preset: Preset, name: str) -> None:
    assert build_query(_query(preset)) == (
        f"sum by (slm_variant,le) (increase({name}_bucket{{{_WHO}}}[30s]))"
    )


@pytest.mark.parametrize("preset", _MEASURED)
@pytest.mark.parametrize("deployment", ["orders", 'or"de\\rs\n'])
def test_every_query_is_promql(preset: Preset, deployment: str) -> None:
    promql_parser.parse(build_query(_query(preset, deployment=deployment)))


def test_window_is_whole_seconds_and_never_empty() -> None:
    assert "[1s]" in build_query(_query(Preset.ERROR_RATE, 0.0))
    assert "[3600s]" in build_query(_query(Preset.ERROR_RATE, 3600.0))


def test_label_values_are_escaped() -> None:
    assert quote('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'


def test_rows_without_their_labels_are_no_answer() -> None:
    for preset in _MEASURED:
        with pytest.raises(ValueError, match="without the label"):
            read_rows(preset, [Row(labels={"slm_variant": "a"}, value=1.0)])


@pytest.mark.parametrize("variant", ["a" * 21, "A", "a b", "a\n", "\u202e"])
def test_what_no_variant_can_be_named_is_left_out(variant: str) -> None:
    rows = [Row(labels={"slm_variant": name, "code": "200"}, value=5.0) for name in ("int4", variant)]
    assert set(read_rows(Preset.ERROR_RATE, rows)) == {"int4"}


def test_more_variants_than_a_deployment_has_are_no_answer() -> None:
    rows = [Row(labels={"slm_variant": f"v{i}", "code": "200"}, value=5.0) for i in range(MAX_VARIANTS + 1)]
    assert len(read_rows(Preset.ERROR_RATE, rows[:-1])) == MAX_VARIANTS
    with pytest.raises(ValueError, match="more than 64 variants"):
        read_rows(Preset.ERROR_RATE, rows)
