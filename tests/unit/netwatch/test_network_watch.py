# SPDX-License-Identifier: Apache-2.0
"""Nothing that we run tries to reach an address that it was not told, or asks for a name.

The libraries of the engines and of the operator bring telemetry, update checks and name look-ups along;
what the kernel sees of each process is the proof that these are off. Servers are watched where all kinds of
requests are sent to them: `slmserve/test_serve_secrets.py`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from slmfetch.store import Store
from tests.unit.netwatch.fake_cluster import serve_cluster
from tests.unit.netwatch.watch import Attempt, read_report
from tests.unit.slmfetch.kit import environment, finish, manifest_of, noise, tree_content, wait_until
from tests.unit.slmfetch.origin import serve_origin
from tests.unit.slmserve.process import ORDERS, ROOT

_WATCH = (sys.executable, "-m", "tests.unit.netwatch.watch")
_PATH = {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"}
_REACHING = """
import socket, subprocess, sys, threading

def reach(family, address):
    try:
        socket.socket(family).connect(address)
    except OSError as error:
        assert error.errno == 101, error

reach(socket.AF_INET, ("192.0.2.1", 9))
reach(socket.AF_INET6, ("2001:db8::1", 9))
thread = threading.Thread(target=reach, args=(socket.AF_INET, ("192.0.2.2", 9)))
thread.start()
thread.join()
child = "import socket\\ntry: socket.create_connection(('192.0.2.3', 9), 5)\\nexcept OSError: pass"
subprocess.run([sys.executable, "-c", child], check=True)
datagrams = socket.socket(type=socket.SOCK_DGRAM)
for send in (
    lambda: datagrams.sendto(b"x", ("192.0.2.4", 9)),
    lambda: datagrams.sendmsg([b"x"], [], 0, ("192.0.2.5", 9)),
    lambda: socket.getaddrinfo("slmops.invalid", 80),
):
    try:
        send()
    except OSError:
        pass
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
sys.exit(7)
"""


def _image_environment() -> dict[str, str]:
    """Variables of the image that have to do with telemetry, as its recipe sets them."""
    text = (ROOT / "Containerfile.runtime").read_text()
    found = dict(re.findall(r"^ENV (\w*TELEMETRY\w*)=(\S+)$", text, re.MULTILINE))
    assert found == {"ORT_DISABLE_TELEMETRY": "1"}
    return found


def _reached(attempts: list[Attempt]) -> set[tuple[str, int]]:
    return {(attempt.address, attempt.port) for attempt in attempts}


def test_the_watch_sees_every_way(tmp_path: Path) -> None:
    report = tmp_path / "report"
    done = subprocess.run(
        [*_WATCH, str(report), "-c", _REACHING], env=os.environ | _PATH, check=False, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 7
    attempts = read_report(report)
    assert {(a.call, a.address) for a in attempts if a.leaves} >= {
        ("connect", "192.0.2.1"),
        ("connect", "2001:db8::1"),
        ("connect", "192.0.2.2"),
        ("connect", "192.0.2.3"),
        ("sendto", "192.0.2.4"),
        ("sendmsg", "192.0.2.5"),
    }
    # The resolver of this machine, or the name service's cache.
    assert any(a.port == 53 or "nscd" in a.address for a in attempts)
    assert [a.address for a in attempts if not a.leaves and a.family == "inet"] == ["127.0.0.1"]


def test_telemetry_of_onnxruntime_is_off_outside_of_the_image_too() -> None:
    environ = {key: value for key, value in os.environ.items() if key not in _image_environment()}
    code = "import slmserve, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        told = subprocess.check_output([sys.executable, "-c", code], env=environ | _PATH | given, text=True)
        assert told.strip() == expected


def test_measuring_engines_reaches_for_nobody(tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(ORDERS / "v1-int4", model_dir)
    shutil.copyfile(ORDERS / "v1-litert/model.tflite", model_dir / "model.tflite")
    report = tmp_path / "report"
    flags = ("--model-dir", str(model_dir), "--slots", "2", "--sandbox", "off", "--budget-seconds", "6")
    done = subprocess.run(
        [*_WATCH, str(report), "-m", "slmserve", "choose", *flags],
        env=os.environ | _PATH | _image_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert set(json.loads(done.stdout)["measured"]) == {"onnxruntime", "litert"}, done.stderr
    assert read_report(report) == []


def test_a_fetcher_reaches_for_its_source_alone(tmp_path: Path) -> None:
    store, report, data = Store(tmp_path / "store"), tmp_path / "report", noise(300_000, 1)
    store.prepare()
    with serve_origin() as origin:
        origin.files["/m/model.onnx"] = data
        manifest = manifest_of({"model.onnx": data}, f"{origin.url}/m")
        (tmp_path / "manifest.json").write_text(manifest.to_json())
        arguments = ["-m", "slmfetch", "--termination-log", str(tmp_path / "termination"), "fetch", "--serve"]
        process = subprocess.Popen(
            [*_WATCH, str(report), *arguments],
            env=environment(store, tmp_path) | _PATH,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        code, output = finish(process)
        assert code == 0, output
        assert tree_content(store, manifest) == {"model.onnx": data}
        assert _reached(read_report(report)) == {("127.0.0.1", origin.port)}


def test_an_operator_reaches_for_its_api_server_alone(tmp_path: Path) -> None:
    report = tmp_path / "report"
    with serve_cluster() as cluster:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "KUBECONFIG": str(cluster.write_kubeconfig(tmp_path / "kubeconfig")),
            "SLMOPS_RUNTIME_IMAGE": "registry.example/runtime:1",
            "SLMOPS_PROMETHEUS_URL": "http://127.0.0.1:9",
            "SLMOPS_NAMESPACE": "slmops",
            "SLMOPS_HEALTH_PORT": "0",
            "SLMOPS_METRICS_PORT": "0",
        }
        process = subprocess.Popen(
            [*_WATCH, str(report), "-m", "slmops"],
            env=environ | _PATH,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            for part in ("leases", "slmdeployments", "slmmodels", "pods", "nodes", "daemonsets"):
                wait_until(lambda part=part: any(part in line for line in cluster.asked))  # type: ignore[misc]
        finally:
            process.terminate()
            code, output = finish(process)
        assert code == 0, output
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        assert not [line for line in lines if line["level"] in ("error", "critical")], lines
        assert _reached(read_report(report)) == {("127.0.0.1", cluster.port)}
