# SPDX-License-Identifier: Apache-2.0
"""Dashboards of what the operator sees: the fleet, and rollouts."""

from typing import Final

from e2e.checks.dashboard_adapters import build_adapters
from e2e.checks.grafana import Dashboard, Kind, Panel, Query, Row, Variable

_OBJECT: Final = 'namespace=~"$namespace",deployment=~"$deployment"'
_SERVED: Final = 'slm_namespace=~"$namespace",slm_deployment=~"$deployment"'
_BAD: Final = ((None, "green"), (1, "orange"))
_CHOICE: Final = (
    Variable(name="namespace", label="Namespace", query="label_values(slmops_nodes, namespace)"),
    Variable(
        name="deployment",
        label="Deployment",
        query='label_values(slmops_nodes{namespace=~"$namespace"}, deployment)',
    ),
)


def _nodes(state: str) -> str:
    # max: while one operator takes over from another, both may be known to Prometheus.
    return f'max by (namespace, deployment) (slmops_nodes{{state="{state}",{_OBJECT}}})'


def _count(title: str, state: str, text: str, *, steps: tuple[tuple[float | None, str], ...]) -> Panel:
    return Panel(
        title=title,
        text=text,
        queries=(Query(expr=f"sum({_nodes(state)})"),),
        kind=Kind.STAT,
        width=4,
        height=4,
        steps=steps,
    )


def _quantile(share: float, series: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({series}_bucket[$__rate_interval])))"


_PLAIN: Final = ((None, "blue"),)

FLEET: Final = Dashboard(
    name="fleet",
    title="SLMOps / Fleet",
    text="Nodes and deployments as the operator sees them, and the operator itself.",
    variables=_CHOICE,
    rows=(
        Row(
            title="Now",
            panels=(
                _count("Nodes", "total", "Nodes that match a placement and a variant.", steps=_PLAIN),
                _count("Ready", "ready", "Nodes with a ready inference pod.", steps=((None, "green"),)),
                _count("Offline", "offline", "Nodes whose kubelet does not report.", steps=_BAD),
                _count("Failed", "failed", "Nodes that cannot fetch or run the model.", steps=_BAD),
                _count("Unfit", "unfit", "Nodes that no variant suits.", steps=_BAD),
                Panel(
                    title="Operator",
                    text="Whether one operator holds the Lease and so may write.",
                    queries=(Query(expr="max(slmops_lease_held)"),),
                    kind=Kind.STAT,
                    width=4,
                    height=4,
                    steps=((None, "red"), (1, "green")),
                    mappings={"0": "no Lease", "1": "writes"},
                ),
                Panel(
                    title="Deployments",
                    text="Counts of nodes for each SLMDeployment.",
                    queries=(
                        Query(expr=_nodes("total"), legend="Nodes"),
                        Query(expr=_nodes("ready"), legend="Ready"),
                        Query(expr=_nodes("stable"), legend="Stable"),
                        Query(expr=_nodes("updated"), legend="Updated"),
                        Query(expr=_nodes("offline"), legend="Offline"),
                        Query(expr=_nodes("failed"), legend="Failed"),
                        Query(expr=_nodes("unfit"), legend="Unfit"),
                    ),
                    kind=Kind.TABLE,
                    width=16,
                ),
                Panel(
                    title="Alerts that fire",
                    text="Alerts of the chart's rules; docs/runbooks.md has a chapter for each.",
                    queries=(
                        Query(
                            expr="count by (alertname, severity) "
                            '(ALERTS{alertname=~"SLMOps.+",alertstate="firing"})',
                            legend="Firing",
                        ),
                    ),
                    kind=Kind.TABLE,
                ),
            ),
        ),
        Row(
            title="Over time",
            panels=(
                Panel(
                    title="Nodes by state",
                    text="Ready, offline, failed and unfit nodes of the chosen deployments.",
                    queries=(
                        Query(
                            expr="sum by (state) (max by (namespace, deployment, state) "
                            f'(slmops_nodes{{state=~"ready|offline|failed|unfit",{_OBJECT}}}))',
                            legend="{{state}}",
                        ),
                    ),
                ),
                Panel(
                    title="Share of nodes that are ready",
                    text="Ready nodes of all that match, by deployment.",
                    queries=(
                        Query(
                            expr=f"{_nodes('ready')} / {_nodes('total')}",
                            legend="{{namespace}}/{{deployment}}",
                        ),
                    ),
                    unit="percentunit",
                    maximum=1,
                ),
                Panel(
                    title="Nodes that serve, by site",
                    text="Sites are known where podMonitor.siteLabel sets slm_site.",
                    queries=(
                        Query(
                            expr="count by (slm_site) (group by (slm_site, slm_node) "
                            f"(slmserve_model_info{{{_SERVED}}}))",
                            legend="{{slm_site}}",
                        ),
                    ),
                    stacked="normal",
                ),
            ),
        ),
        Row(
            title="Operator",
            panels=(
                Panel(
                    title="Looks",
                    text="How long the operator takes to observe, plan and write, for all deployments.",
                    queries=(
                        Query(expr=_quantile(0.5, "slmops_reconcile_duration_seconds"), legend="p50"),
                        Query(expr=_quantile(0.99, "slmops_reconcile_duration_seconds"), legend="p99"),
                        Query(expr=_quantile(0.99, "slmops_plan_duration_seconds"), legend="planning p99"),
                        Query(
                            expr=_quantile(0.95, "slmops_event_to_write_seconds"),
                            legend="event to write p95",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    title="Requests to the Kubernetes API",
                    text="By answer; 0 is no answer, 409 a conflict, which is part of normal work.",
                    queries=(
                        Query(
                            expr="sum by (code) (rate(slmops_kubernetes_requests_total[$__rate_interval]))",
                            legend="{{code}}",
                        ),
                    ),
                    unit="reqps",
                    stacked="normal",
                ),
                Panel(
                    title="Kubernetes API, p99",
                    text="Time until the answer's headers, by verb.",
                    queries=(
                        Query(
                            expr="histogram_quantile(0.99, sum by (verb, le) "
                            "(rate(slmops_kubernetes_request_duration_seconds_bucket[$__rate_interval])))",
                            legend="{{verb}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    title="Looks that failed",
                    text="By kind of error; a Conflict is looked at again at once.",
                    queries=(
                        Query(
                            expr="sum by (reason) (rate(slmops_reconcile_errors_total[$__rate_interval]))",
                            legend="{{reason}}",
                        ),
                    ),
                    unit="cps",
                ),
                Panel(
                    title="Writes",
                    text="Writes that succeeded.",
                    queries=(
                        Query(
                            expr="sum by (verb, kind) (rate(slmops_writes_total[$__rate_interval]))",
                            legend="{{verb}} {{kind}}",
                        ),
                    ),
                    unit="wps",
                    stacked="normal",
                ),
                Panel(
                    title="Backlog",
                    text="Deployments looked after, looks that wait for a turn, Events that were dropped.",
                    queries=(
                        Query(expr="max(slmops_deployments)", legend="deployments"),
                        Query(expr="max(slmops_reconciles_waiting)", legend="waiting"),
                        Query(
                            expr="sum(increase(slmops_events_dropped_total[$__rate_interval]))",
                            legend="Events dropped",
                        ),
                    ),
                ),
            ),
        ),
    ),
)


def _compared(title: str, record: str, *, unit: str, text: str) -> Panel:
    return Panel(
        title=title,
        text=f"{text} Needs the chart's recording rules (monitoring.prometheusRule).",
        queries=(
            Query(
                expr=f"slm_revision:{record}{{{_SERVED}}}",
                legend="{{slm_deployment}} {{slm_revision}}",
            ),
        ),
        unit=unit,
    )


ROLLOUT: Final = Dashboard(
    name="rollout",
    title="SLMOps / Rollout",
    text="Where rollouts stand, what they wait for, how they are judged, and revisions side by side.",
    variables=_CHOICE,
    rows=(
        Row(
            title="Progress",
            panels=(
                Panel(
                    title="Steps",
                    text="The step that each rollout was in.",
                    queries=(
                        Query(
                            expr="max by (namespace, deployment, step) "
                            f"(slmops_rollout_step{{{_OBJECT}}}) == 1",
                            legend="{{namespace}}/{{deployment}} {{step}}",
                        ),
                    ),
                    kind=Kind.STATES,
                    width=12,
                    mappings={"1": "in this step"},
                ),
                Panel(
                    title="Held",
                    text="What each rollout waited for.",
                    queries=(
                        Query(
                            expr=f"max by (namespace, deployment, reason) (slmops_rollout_held{{{_OBJECT}}})",
                            legend="{{namespace}}/{{deployment}} {{reason}}",
                        ),
                    ),
                    kind=Kind.STATES,
                    width=12,
                    steps=((None, "orange"),),
                    mappings={"1": "held"},
                ),
                Panel(
                    title="Nodes by revision",
                    text="Nodes that were given the stable revision, and the new one.",
                    queries=(
                        Query(expr=_nodes("stable"), legend="{{namespace}}/{{deployment}} stable"),
                        Query(expr=_nodes("updated"), legend="{{namespace}}/{{deployment}} updated"),
                    ),
                ),
                Panel(
                    title="Judged waves",
                    text="Waves that were judged, by verdict.",
                    queries=(
                        Query(
                            expr="sum by (verdict) (increase("
                            f"slmops_wave_duration_seconds_count{{{_OBJECT}}}[$__rate_interval]))",
                            legend="{{verdict}}",
                        ),
                    ),
                    stacked="normal",
                ),
                Panel(
                    title="Duration of waves, median",
                    text="From the begin of a wave to its verdict.",
                    queries=(
                        Query(
                            expr="histogram_quantile(0.5, sum by (verdict, le) (rate("
                            f"slmops_wave_duration_seconds_bucket{{{_OBJECT}}}[$__range])))",
                            legend="{{verdict}}",
                        ),
                    ),
                    unit="s",
                ),
            ),
        ),
        Row(
            title="Analysis",
            panels=(
                Panel(
                    title="Measurements",
                    text="Judged measurements by metric and verdict.",
                    queries=(
                        Query(
                            expr="sum by (metric, verdict) (increase("
                            f"slmops_measurements_total{{{_OBJECT}}}[$__rate_interval]))",
                            legend="{{metric}} {{verdict}}",
                        ),
                    ),
                    width=12,
                    stacked="normal",
                ),
                Panel(
                    title="State changes",
                    text="What happened in the chosen time, as the Events say it.",
                    queries=(
                        Query(
                            expr="sum by (namespace, deployment, reason) (increase("
                            f"slmops_transitions_total{{{_OBJECT}}}[$__range])) > 0",
                            legend="Times",
                        ),
                    ),
                    kind=Kind.TABLE,
                    width=12,
                ),
            ),
        ),
        build_adapters(_OBJECT),
        Row(
            title="Revisions side by side",
            panels=(
                _compared(
                    "Errors",
                    "slmserve_errors:ratio_rate5m",
                    unit="percentunit",
                    text="Share of requests that end with 5xx.",
                ),
                _compared(
                    "Request, p95",
                    "slmserve_request_duration_seconds:p95_rate5m",
                    unit="s",
                    text="Whole requests.",
                ),
                _compared(
                    "First token, p95",
                    "slmserve_time_to_first_token_seconds:p95_rate5m",
                    unit="s",
                    text="Queueing included.",
                ),
                _compared(
                    "Refused",
                    "slmserve_refusals:ratio_rate5m",
                    unit="percentunit",
                    text="Share of requests that a full queue refuses.",
                ),
                _compared(
                    "Tokens generated",
                    "slmserve_generated_tokens:rate5m",
                    unit="cps",
                    text="Tokens per second, over all nodes.",
                ),
                Panel(
                    title="Golden set",
                    text="Share of the golden set answered as expected: the mean over the nodes.",
                    queries=(
                        Query(
                            expr="avg by (slm_deployment, slm_revision, slm_variant) "
                            f"(slmserve_evaluation_score{{{_SERVED}}})",
                            legend="{{slm_deployment}} {{slm_revision}} {{slm_variant}}",
                        ),
                    ),
                    unit="percentunit",
                    maximum=1,
                ),
            ),
        ),
    ),
)
