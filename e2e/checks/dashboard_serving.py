# SPDX-License-Identifier: Apache-2.0
"""Dashboard of the inference servers."""

from typing import Final

from e2e.checks.grafana import Dashboard, Kind, Panel, Query, Row, choose, rate

_SITE: Final = 'slm_site=~"$site"'
_WHOSE: Final = f'{_SITE},slm_namespace=~"$namespace",slm_deployment=~"$deployment"'
_SERVER: Final = f'{_WHOSE},slm_model=~"$model",slm_revision=~"$revision"'


def _quantiles(series: str) -> tuple[Query, ...]:
    inner = f"sum by (le) ({rate(f'{series}_bucket', _SERVER)})"
    return tuple(
        Query(expr=f"histogram_quantile({share}, {inner})", legend=legend)
        for share, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def _share(codes: str) -> str:
    return (
        f"sum by (slm_revision) ({rate('slmserve_requests_total', f'{_SERVER},{codes}')})"
        f" / sum by (slm_revision) ({rate('slmserve_requests_total', _SERVER)})"
    )


SERVING: Final = Dashboard(
    name="serving",
    title="SLMOps / Serving",
    text="Traffic, latency, load and quality of the inference servers.",
    variables=(
        choose("site", "Site", "slmserve_model_info", "slm_site"),
        choose("namespace", "Namespace", "slmserve_model_info", "slm_namespace"),
        choose(
            "deployment",
            "Deployment",
            "slmserve_model_info",
            "slm_deployment",
            'slm_namespace=~"$namespace"',
        ),
        choose("model", "Model", "slmserve_model_info", "slm_model", _WHOSE),
        choose(
            "revision", "Revision", "slmserve_model_info", "slm_revision", f'{_WHOSE},slm_model=~"$model"'
        ),
    ),
    rows=(
        Row(
            title="Traffic",
            panels=(
                Panel(
                    title="Requests",
                    text="Finished requests by status code; 429: refused, 499: the client left.",
                    queries=(
                        Query(
                            expr=f"sum by (code) ({rate('slmserve_requests_total', _SERVER)})",
                            legend="{{code}}",
                        ),
                    ),
                    unit="reqps",
                    stacked="normal",
                ),
                Panel(
                    title="Errors and refusals",
                    text="Share of requests that end with 5xx, or that a full queue refuses.",
                    queries=(
                        Query(expr=_share('code=~"5.."'), legend="5xx {{slm_revision}}"),
                        Query(expr=_share('code="429"'), legend="429 {{slm_revision}}"),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    title="Tokens",
                    text="Tokens per second, over the chosen servers.",
                    queries=(
                        Query(
                            expr=f"sum({rate('slmserve_generated_tokens_total', _SERVER)})",
                            legend="generated",
                        ),
                        Query(expr=f"sum({rate('slmserve_prompt_tokens_total', _SERVER)})", legend="prompts"),
                    ),
                    unit="cps",
                ),
            ),
        ),
        Row(
            title="Latency",
            panels=(
                Panel(
                    title="Whole requests",
                    text="From the first byte in to the last byte out.",
                    queries=_quantiles("slmserve_request_duration_seconds"),
                    unit="s",
                ),
                Panel(
                    title="First token",
                    text="From arrival to the first generated token, queueing included.",
                    queries=_quantiles("slmserve_time_to_first_token_seconds"),
                    unit="s",
                ),
                Panel(
                    title="Between tokens",
                    text="Time between two tokens of one request.",
                    queries=_quantiles("slmserve_inter_token_seconds"),
                    unit="s",
                ),
                Panel(
                    title="Distribution of request times",
                    text="How many requests took how long.",
                    queries=(
                        Query(
                            expr="sum by (le) (increase("
                            f"slmserve_request_duration_seconds_bucket{{{_SERVER}}}[$__rate_interval]))",
                            legend="{{le}}",
                        ),
                    ),
                    kind=Kind.HEATMAP,
                    width=12,
                ),
                Panel(
                    title="First token, p95, by revision and variant",
                    text="What a new revision does to each class of devices.",
                    queries=(
                        Query(
                            expr="histogram_quantile(0.95, sum by (slm_revision, slm_variant, le) ("
                            f"{rate('slmserve_time_to_first_token_seconds_bucket', _SERVER)}))",
                            legend="{{slm_revision}} {{slm_variant}}",
                        ),
                    ),
                    unit="s",
                    width=12,
                ),
            ),
        ),
        Row(
            title="Load",
            panels=(
                Panel(
                    title="Queue, the ten longest",
                    text="Requests that wait for a slot.",
                    queries=(
                        Query(
                            expr=f"topk(10, max by (slm_node) (slmserve_queue_depth{{{_SERVER}}}))",
                            legend="{{slm_node}}",
                        ),
                    ),
                ),
                Panel(
                    title="Busy slots",
                    text="Share of the decoding slots that are in use, by site.",
                    queries=(
                        Query(
                            expr=f'sum by (slm_site) (slmserve_slots{{state="busy",{_SERVER}}})'
                            f' / sum by (slm_site) (slmserve_slots{{state="total",{_SERVER}}})',
                            legend="{{slm_site}}",
                        ),
                    ),
                    unit="percentunit",
                    maximum=1,
                ),
                Panel(
                    title="CPU, the ten busiest",
                    text="Cores that the server's process uses.",
                    queries=(
                        Query(
                            expr="topk(10, sum by (slm_node) "
                            f"({rate('process_cpu_seconds_total', _SERVER)}))",
                            legend="{{slm_node}}",
                        ),
                    ),
                    unit="none",
                ),
                Panel(
                    title="Memory, the ten largest",
                    text="Resident memory of the server's process; mapped model files count.",
                    queries=(
                        Query(
                            expr=f"topk(10, max by (slm_node) (process_resident_memory_bytes{{{_SERVER}}}))",
                            legend="{{slm_node}}",
                        ),
                    ),
                    unit="bytes",
                ),
                Panel(
                    title="Restarts",
                    text="Starts of the server's process within one pod.",
                    queries=(
                        Query(
                            expr="sum by (slm_node) "
                            f"(changes(process_start_time_seconds{{{_SERVER}}}[$__rate_interval])) > 0",
                            legend="{{slm_node}}",
                        ),
                    ),
                ),
                Panel(
                    title="Loading the model",
                    text="From the start of the process until the model was loaded.",
                    queries=(
                        Query(
                            expr="max by (slm_revision, slm_variant) "
                            f"(slmserve_model_load_seconds{{{_SERVER}}})",
                            legend="{{slm_revision}} {{slm_variant}}",
                        ),
                    ),
                    unit="s",
                ),
            ),
        ),
        Row(
            title="Quality and devices",
            panels=(
                Panel(
                    title="Golden set, the lowest scores",
                    text="Share of the golden set answered as expected on the device itself.",
                    queries=(
                        Query(
                            expr="bottomk(15, min by (slm_node, slm_variant) "
                            f"(slmserve_evaluation_score{{{_SERVER}}}))",
                            legend="{{slm_node}} {{slm_variant}}",
                        ),
                    ),
                    unit="percentunit",
                    kind=Kind.BARS,
                    maximum=1,
                    steps=((None, "red"), (0.5, "orange"), (0.8, "green")),
                ),
                Panel(
                    title="What is loaded",
                    text="Servers by node; the count is one each.",
                    queries=(
                        Query(
                            expr="max by (slm_site, slm_node, slm_namespace, slm_deployment, slm_revision, "
                            f"slm_variant, engine, version) (slmserve_model_info{{{_SERVER}}})",
                        ),
                    ),
                    kind=Kind.TABLE,
                    width=16,
                ),
            ),
        ),
    ),
)
