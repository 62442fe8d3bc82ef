# SPDX-License-Identifier: Apache-2.0
"""API keys and TLS from Secrets: taken on in waves, renewed without a restart, and missed without harm."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from e2e.lib import Cluster, Deployment
from e2e.lib.manifests import golden_cases
from e2e.lib.observe import condition, rollout_of
from e2e.rig import Rig
from e2e.rig.pki import Authority
from e2e.suite.conftest import Make
from e2e.suite.faults import put_secret

PLAIN: Final[dict[str, Any]] = {"port": 80}
CLOSED: Final[dict[str, Any]] = {
    "port": 80,
    "auth": {"apiKeysSecretRef": {"name": "orders-keys"}},
    "tls": {"secretRef": {"name": "orders-tls"}},
}
OLD, NEW = "sk-old-key-of-the-e2e", "sk-new-key-of-the-e2e"
KUBELET_SECONDS: Final = 150
"""A kubelet looks at its volumes about once a minute."""
_ASK: Final = """
import json, ssl, sys, urllib.error, urllib.request
order = json.loads(sys.argv[1])
headers = {"Content-Type": "application/json"}
if order["key"]:
    headers["Authorization"] = "Bearer " + order["key"]
request = urllib.request.Request(order["url"], json.dumps(order["body"]).encode(), headers)
try:
    trusted = ssl.create_default_context(cafile=order["ca"])
    with urllib.request.urlopen(request, timeout=20, context=trusted) as answer:
        print(json.dumps([answer.status, json.loads(answer.read())]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, {}]))
except OSError as error:
    print(json.dumps([0, str(error)]))
"""


class Client:
    """Asks the model from a node, and believes only certificates of the test's authority."""

    def __init__(self, rig: Rig, node: str, authority: Authority, url: str) -> None:
        self._rig, self._node, self._authority, self._url = rig, node, authority, url

    def ask(self, key: str) -> tuple[int, Any]:
        """HTTP status (0: no connection) and body."""
        body = {"model": "orders", "temperature": 0, "messages": golden_cases()[0]["messages"]}
        order = {"url": self._url, "key": key, "body": body, "ca": str(self._authority.pair.certificate)}
        done = self._rig.exec_in_netns(self._node, sys.executable, "-I", "-c", _ASK, json.dumps(order))
        status, answer = json.loads(done)
        return int(status), answer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    found = Authority(Path(tmp_path_factory.mktemp("authority")))
    found.create()
    return found


def put_tls(orders: Deployment, authority: Authority, address: str) -> None:
    pair = authority.issue("orders", common_name="orders", addresses=[address])
    data = {"tls.crt": pair.certificate.read_text(), "tls.key": pair.key.read_text()}
    put_secret(orders, "orders-tls", **data)


def started(orders: Deployment) -> dict[str, int]:
    """Restarts of the server of each pod, by the pod's uid."""
    return {
        pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in orders.pods()
    }


def test_keys_and_a_certificate_come_go_and_are_missed(
    make_deployment: Make, cluster: Cluster, rig: Rig, authority: Authority
) -> None:
    orders = make_deployment()
    orders.apply("v1", service=PLAIN)
    plain = orders.wait_installed()["status"]["stableRevision"]
    url = orders.service_address().replace("http://", "https://") + "/v1/chat/completions"
    address = url.split("//")[1].split(":")[0]
    put_tls(orders, authority, address)
    put_secret(orders, "orders-keys", keys=f"{OLD}\n")

    orders.apply("v1", service=CLOSED)
    found = orders.wait_status(
        "keys and TLS being promoted",
        lambda found: (
            found["status"].get("stableRevision") not in ("", plain)
            and condition(found, "RolloutSucceeded").get("status") == "True"
            and condition(found, "Ready").get("status") == "True"
        ),
        timeout_seconds=420,
    )
    closed = found["status"]["stableRevision"]
    client = Client(rig, cluster.edge_nodes[0], authority, url)
    # The node's kube-proxy may hear of the new port later than the operator wrote it.
    orders.wait("a client without a key being refused", lambda: client.ask("")[0] == 401, timeout_seconds=120)
    status, answer = client.ask(OLD)
    assert status == 200 and json.loads(answer["choices"][0]["message"]["content"])["intent"]
    service = cluster.need("service", orders.name, namespace=orders.namespace)
    assert service["spec"]["ports"][0]["name"] == "https"
    before = started(orders)

    # A Secret that is not there: nodes fetch ahead, miss it, and none gives up what it serves.
    put_secret(orders, "orders-keys", keys=f"{NEW}\n")
    renewed_at = time.monotonic()
    missing = CLOSED | {"auth": {"apiKeysSecretRef": {"name": "no-such-secret"}}}
    deadlines = {"prefetchDeadline": "20s", "onDeadline": "Rollback"}
    orders.apply("v1", service=missing, rollout=deadlines)
    orders.wait_status(
        "giving up over the missing Secret",
        lambda found: (
            rollout_of(found).get("step") == "Failed" and condition(found, "Ready").get("status") == "True"
        ),
        timeout_seconds=420,
    )
    status_now = orders.status()
    assert status_now["stableRevision"] == closed
    assert condition({"status": status_now}, "RolloutSucceeded")["status"] == "False"

    # The keys were renewed meanwhile, and the servers have not been started again.
    orders.wait(
        "the new key being taken",
        lambda: client.ask(NEW)[0] == 200 and client.ask(OLD)[0] == 401,
        timeout_seconds=max(60.0, KUBELET_SECONDS - (time.monotonic() - renewed_at)),
        interval_seconds=3,
    )
    assert started(orders) == before
