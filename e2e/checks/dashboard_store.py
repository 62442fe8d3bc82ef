# SPDX-License-Identifier: Apache-2.0
"""Dashboard of the nodes' model stores."""

from typing import Final

from e2e.checks.grafana import Dashboard, Kind, Panel, Query, Row, choose, rate

_SITE: Final = 'slm_site=~"$site"'
_WHOSE: Final = f'{_SITE},slm_namespace=~"$namespace",slm_deployment=~"$deployment"'
_STORE: Final = f'{_SITE},slm_node=~"$node"'
_PIN: Final = f'{_WHOSE},slm_revision=~"$revision",slm_node=~"$node"'


def _store(title: str, series: str, *, unit: str, text: str) -> Panel:
    return Panel(
        title=title,
        text=text,
        queries=(Query(expr=f"topk(10, max by (slm_node) ({series}{{{_STORE}}}))", legend="{{slm_node}}"),),
        unit=unit,
    )


def _total(
    title: str, expr: str, *, unit: str, text: str, steps: tuple[tuple[float | None, str], ...]
) -> Panel:
    return Panel(
        title=title,
        text=text,
        queries=(Query(expr=expr),),
        unit=unit,
        kind=Kind.STAT,
        width=4,
        height=4,
        steps=steps,
    )


_PLAIN: Final = ((None, "blue"),)
_BAD: Final = ((None, "green"), (1, "red"))

STORE: Final = Dashboard(
    name="store",
    title="SLMOps / Store",
    text="What the nodes' model stores hold, fetch, give to each other and remove.",
    variables=(
        choose("site", "Site", "slmstore_bytes", "slm_site"),
        choose("node", "Node", "slmstore_bytes", "slm_node", _SITE),
        choose("namespace", "Namespace", "slmstore_pin_bytes", "slm_namespace", _STORE),
        choose(
            "deployment", "Deployment", "slmstore_pin_bytes", "slm_deployment", 'slm_namespace=~"$namespace"'
        ),
        choose("revision", "Revision", "slmstore_pin_bytes", "slm_revision", _WHOSE),
    ),
    rows=(
        Row(
            title="Now",
            panels=(
                _total(
                    "Stores",
                    f"count(group by (slm_node) (slmstore_bytes{{{_STORE}}}))",
                    unit="short",
                    text="Nodes whose store agent answers.",
                    steps=_PLAIN,
                ),
                _total(
                    "Held",
                    f"sum(max by (slm_node) (slmstore_bytes{{{_STORE}}}))",
                    unit="bytes",
                    text="Bytes of models and partial files, over the chosen nodes.",
                    steps=_PLAIN,
                ),
                _total(
                    "Reclaimable",
                    f"sum(max by (slm_node) (slmstore_reclaimable_bytes{{{_STORE}}}))",
                    unit="bytes",
                    text="Bytes that no pin needs; they go by themselves.",
                    steps=_PLAIN,
                ),
                _total(
                    "Fetches",
                    f"count(slmstore_fetch_total_bytes{{{_PIN}}})",
                    unit="short",
                    text="Fetches under way.",
                    steps=_PLAIN,
                ),
                _total(
                    "Failed verification",
                    f"sum(max by (slm_node) (slmstore_quarantined{{{_STORE}}}))",
                    unit="short",
                    text="Files whose bytes did not match their SHA-256; they are not used.",
                    steps=_BAD,
                ),
                _total(
                    "Unreadable pins",
                    f"sum(max by (slm_node) (slmstore_problems{{{_STORE}}}))",
                    unit="short",
                    text="Nothing is collected on such a node.",
                    steps=_BAD,
                ),
            ),
        ),
        Row(
            title="Room",
            panels=(
                Panel(
                    title="Least room",
                    text="Share of the file system that is free or reclaimable: the 15 fullest nodes.",
                    queries=(
                        Query(
                            expr=f"bottomk(15, min by (slm_node) ((slmstore_free_bytes{{{_STORE}}}"
                            f" + slmstore_reclaimable_bytes{{{_STORE}}})"
                            f" / slmstore_file_system_bytes{{{_STORE}}}))",
                            legend="{{slm_node}}",
                        ),
                    ),
                    unit="percentunit",
                    kind=Kind.BARS,
                    maximum=1,
                    steps=((None, "red"), (0.03, "orange"), (0.1, "green")),
                ),
                _store(
                    "Held, the ten largest",
                    "slmstore_bytes",
                    unit="bytes",
                    text="Bytes of blobs and partial files.",
                ),
                _store(
                    "Partial files, the ten largest",
                    "slmstore_partial_bytes",
                    unit="bytes",
                    text="Bytes of files begun and not finished.",
                ),
                Panel(
                    title="Pinned revisions",
                    text="How many of the nodes hold all of a revision.",
                    queries=(
                        Query(
                            expr="count by (slm_namespace, slm_deployment, slm_revision) "
                            f'(slmstore_pin_bytes{{complete="true",{_PIN}}})',
                            legend="Complete",
                        ),
                        Query(
                            expr="count by (slm_namespace, slm_deployment, slm_revision) "
                            f'(slmstore_pin_bytes{{complete="false",{_PIN}}})',
                            legend="Not yet",
                        ),
                    ),
                    kind=Kind.TABLE,
                    width=12,
                ),
                Panel(
                    title="Files held, the ten largest",
                    text="Verified files by node.",
                    queries=(
                        Query(
                            expr=f"topk(10, max by (slm_node) (slmstore_blobs{{{_STORE}}}))",
                            legend="{{slm_node}}",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
        Row(
            title="Fetching and sharing",
            panels=(
                Panel(
                    title="Progress of fetches",
                    text="Share that is here of what was missing.",
                    queries=(
                        Query(
                            expr="max by (slm_node, slm_deployment, slm_revision) ("
                            f"slmstore_fetch_bytes{{{_PIN}}} / slmstore_fetch_total_bytes{{{_PIN}}})",
                            legend="{{slm_node}} {{slm_deployment}} {{slm_revision}}",
                        ),
                    ),
                    unit="percentunit",
                    maximum=1,
                ),
                Panel(
                    title="Given to other nodes",
                    text="Bytes per second that stores give to nodes of their site.",
                    queries=(
                        Query(
                            expr=f"sum by (slm_site) ({rate('slmstore_agent_sent_bytes_total', _STORE)})",
                            legend="{{slm_site}}",
                        ),
                    ),
                    unit="Bps",
                ),
                Panel(
                    title="Connections",
                    text="Open ones, and how many were refused because there were too many.",
                    queries=(
                        Query(
                            expr=f"topk(10, max by (slm_node) (slmstore_agent_connections{{{_STORE}}}))",
                            legend="open {{slm_node}}",
                        ),
                        Query(
                            expr=f"sum({rate('slmstore_agent_refused_total', _STORE)})",
                            legend="refused per second",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            title="Tidying up",
            panels=(
                Panel(
                    title="Removed",
                    text="Bytes of orphans removed per second.",
                    queries=(
                        Query(
                            expr=f"sum by (slm_site) ({rate('slmstore_collected_bytes_total', _STORE)})",
                            legend="{{slm_site}}",
                        ),
                    ),
                    unit="Bps",
                    width=12,
                ),
                Panel(
                    title="Collections",
                    text="Every ten minutes on each node; failures should be none.",
                    queries=(
                        Query(expr=f"sum({rate('slmstore_collections_total', _STORE)})", legend="all"),
                        Query(
                            expr=f"sum({rate('slmstore_collection_errors_total', _STORE)})",
                            legend="failed",
                        ),
                    ),
                    unit="cps",
                    width=12,
                ),
            ),
        ),
    ),
)
