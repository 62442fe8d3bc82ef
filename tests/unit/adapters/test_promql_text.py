# SPDX-License-Identifier: Apache-2.0
"""The texts of generated queries; tests/apiserver/test_promql.py runs them on a real Prometheus."""

import pytest

from slmops.adapters.promql import build_questions, quote
from slmops.model.observed import MetricQuery, Preset


def _query(preset: Preset, window_seconds: float = 29.2) -> MetricQuery:
    return MetricQuery(
        preset=preset, namespace="ns", deployment="orders", revision="abc", window_seconds=window_seconds
    )


def test_error_rate_leaves_out_what_clients_did_wrong() -> None:
    who = 'slm_namespace="ns",slm_deployment="orders",slm_revision="abc"'
    found = build_questions(_query(Preset.ERROR_RATE))
    assert found.share
    assert found.value == f'sum(increase(slmserve_requests_total{{{who},code=~"5.."}}[30s]))'
    assert found.samples == f'sum(increase(slmserve_requests_total{{{who},code!~"4.."}}[30s]))'


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        (Preset.LATENCY_P95, "slmserve_request_duration_seconds"),
        (Preset.TTFT_P95, "slmserve_time_to_first_token_seconds"),
    ],
)
def test_latencies_are_quantiles_over_all_pods(preset: Preset, name: str) -> None:
    found = build_questions(_query(preset))
    assert found.value.startswith(f"histogram_quantile(0.95, sum by (le) (increase({name}_bucket{{")
    assert found.samples.startswith(f"sum(increase({name}_count{{")
    assert not found.share


def test_window_is_whole_seconds_and_never_empty() -> None:
    assert "[1s]" in build_questions(_query(Preset.ERROR_RATE, 0.0)).value
    assert "[3600s]" in build_questions(_query(Preset.ERROR_RATE, 3600.0)).value


def test_label_values_are_escaped() -> None:
    assert quote('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
