# SPDX-License-Identifier: Apache-2.0
"""Two nodes of one site want the same model: one copy crosses the site's line."""

import time
from typing import Any

from e2e.lib import Cluster, NodeClient
from e2e.lib.manifests import FOLDER, golden_cases, model_dir
from e2e.rig import Rig
from e2e.suite.conftest import STORE, Make
from e2e.suite.faults import fetch_report, model_bytes, wait_answer

SITE_LABEL = "slmops.dev/site"
SITE = "site-a"
FILE = "model.onnx.data"
COPIES = 1.05


def test_a_site_brings_one_copy_over_its_line(
    make_deployment: Make, cluster: Cluster, rig: Rig, clients: dict[str, NodeClient]
) -> None:
    nodes = sorted(
        node["metadata"]["name"] for node in cluster.find_all("nodes", selector=f"{SITE_LABEL}={SITE}")
    )
    assert len(nodes) >= 2, "the rig has two nodes in this site"
    # The store that the agents give from; a version that no other test has put there.
    orders = make_deployment(
        nodes={"matchLabels": {SITE_LABEL: SITE}}, cache={"hostPath": STORE, "deletionPolicy": "Delete"}
    )
    body: dict[str, Any] = orders.manifest("v2", variant="fp32")
    body["spec"]["placement"]["siteLabel"] = SITE_LABEL
    path = f"/{FOLDER}/v2-fp32/{FILE}"
    size = (model_dir("v2", variant="fp32") / FILE).stat().st_size
    # Slow enough that both nodes are at it for a while.
    rig.set_model_faults({path: {"bytes_per_second": 400_000}})
    begin = time.time()
    cluster.apply(body)
    orders.wait_installed()
    sent = model_bytes(rig, since=begin, path=path)
    assert size <= sent <= COPIES * size, f"{sent} bytes were sent of a file of {size}"
    reports = {node: fetch_report(orders, node) for node in nodes}
    assert sum(report.bytes_from_peers for report in reports.values()) >= size * (len(nodes) - 1), reports
    case = golden_cases("v2", variant="fp32")[0]
    for node in nodes:
        wait_answer(orders, clients[node], case=case)
