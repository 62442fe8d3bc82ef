# SPDX-License-Identifier: Apache-2.0
"""What our processes export: every series' name with its labels, from the registries themselves."""

from collections.abc import Mapping
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from slmfetch.agent_metrics import Counts, render_metrics
from slmops.api.status import NodeCounts
from slmops.planning.transitions import HOLDS
from slmops.runtime.metrics import STEPS, OperatorMetrics
from slmserve.config import Identity
from slmserve.metrics import Metrics
from slmwire.metrics import DRIFT_SIGNALS, SCRIPTS

TARGET_LABELS: Final = frozenset({"job", "instance", "namespace", "pod", "container", "node", "slm_site"})
"""What a scrape adds; slm_site by the PodMonitors' relabelling."""

LABEL_VALUES: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("slmops_nodes", "state"): frozenset(NodeCounts.model_fields),
    ("slmops_rollout_step", "step"): frozenset(STEPS),
    ("slmops_rollout_held", "reason"): HOLDS,
    ("slmserve_slots", "state"): frozenset({"busy", "total"}),
    ("slmserve_drift_index", "signal"): frozenset(DRIFT_SIGNALS),
    ("slmserve_drift_samples", "signal"): frozenset(DRIFT_SIGNALS),
    ("slmserve_prompt_script_total", "script"): frozenset(SCRIPTS),
    ("slmserve_refusal_checks_total", "refused"): frozenset({"true", "false"}),
    ("slmstore_pin_bytes", "complete"): frozenset({"true", "false"}),
}
"""Values of labels that have a closed set, by series and label."""


def exported_series() -> dict[str, frozenset[str]]:
    """Labels by series name, as Prometheus has them: of the operator, the inference server, the store agent.

    A histogram counts as its three series.
    """
    found = {**_operator(), **_server(), **_agent()}
    return {name: labels | TARGET_LABELS for name, labels in found.items()}


def _operator() -> dict[str, frozenset[str]]:
    metrics = OperatorMetrics()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase) and metric._labelnames:
            metric.labels(*("x" for _ in metric._labelnames))  # no series without a first value
    return _series(generate_latest(metrics.registry).decode())


def _server() -> dict[str, frozenset[str]]:
    metrics = Metrics(Identity(namespace="x", deployment="x", revision="x", variant="x", model="x", node="x"))
    metrics.record_loaded(seconds=1, digest="x", engine="x", version="x", slots=1, cache_bytes=1)
    metrics.record_evaluation(score=1, samples=1, seconds=1)
    metrics.count_feedback(1.0, ["x"])
    metrics.observe_prompt(1)
    metrics.observe_answer("stop", 1)
    metrics.count_script("latin")
    metrics.count_fallback(1)
    metrics.begin_refusals()
    metrics.begin_examples()
    metrics.show_drift("script", index=0.0, samples=1)
    return _series(metrics.render(queue_depth=0, busy=0).decode())


def _agent() -> dict[str, frozenset[str]]:
    sizes = ("bytes", "freeBytes", "fileSystemBytes", "reclaimableBytes", "blobs")
    where = {"namespace": "x", "deployment": "x", "revision": "x"}
    observed: Mapping[str, object] = {
        **dict.fromkeys(sizes, 1),
        "partials": [],
        "pins": [{**where, "complete": True, "bytes": 1}],
        "quarantined": [],
        "problems": [],
    }
    return _series(render_metrics(observed, [{**where, "bytes": 1, "total": 1}], Counts(), node="x"))


def _series(text: str) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, frozenset()) | frozenset(sample.labels)
    return found
