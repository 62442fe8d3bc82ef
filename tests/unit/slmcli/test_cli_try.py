# SPDX-License-Identifier: Apache-2.0
"""`try`: which variant a machine gets, what is refused, and the whole of it with a real server."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import OpenAI

from slmcli.errors import CliError, RefusedError, UsageError
from slmcli.trial.plan import Machine, Plan, observe_machine, plan_trial, read_wanted
from slmcli.trial.processes import build_environment, check_runtime, default_store, progress_text
from slmcli.trial.sources import resolve_source
from slmops.api.spec import Source
from slmops.model.observed import Resolved
from slmwire.manifest import Manifest, ManifestFile, parse_manifest
from tests.unit.slmcli.cli_double import ScriptedCluster, run_cli
from tests.unit.slmcli.cli_objects import Body
from tests.unit.slmserve.process import ORDERS, ROOT

MODEL = ORDERS / "v1-int4"
GIB = 1 << 30


@pytest.fixture
def web() -> Iterator[str]:
    """The folder of models on a web server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(ORDERS)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def _variant(name: str, source: Body, **more: Any) -> Body:
    return {"name": name, "source": source} | more


def _write(folder: Path, *variants: Body, profiles: tuple[Body, ...] = (), **spec: Any) -> Path:
    body = {
        "apiVersion": "slmops.dev/v1alpha1",
        "kind": "SLMDeployment",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {
            "model": {"name": "orders", "version": "v1"},
            "variants": list(variants),
            "placement": {"nodeSelector": {"matchLabels": {"edge": "true"}}},
        }
        | spec,
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump_all([body, *profiles]))
    return path


def _http(url: str, **more: Any) -> Body:
    return {"http": {"url": url} | more}


def _resolved(size: int) -> Resolved:
    file = ManifestFile(path="model.onnx", size=size, sha256="0" * 64)
    manifest = Manifest(files=(file,))
    return Resolved(manifest=manifest, reference=manifest.digest)


def _sized(source: Source) -> Resolved:
    """Stands for a source whose URL ends in its size in GiB."""
    if source.http is None:
        raise RefusedError("only the operator can ask it")
    return _resolved(int(source.http.url.rpartition("/")[2]) * GIB)


def _plan(path: Path, *, memory: int = 8, architecture: str = "amd64", variant: str | None = None) -> Plan:
    machine = Machine(architecture=architecture, memory_bytes=memory * GIB)
    return plan_trial(read_wanted(path), machine, variant=variant, resolve=_sized)


def test_a_machine_gets_what_a_node_like_it_would_get(tmp_path: Path) -> None:
    arm = {"nodeSelector": {"matchLabels": {"kubernetes.io/arch": "arm64"}}}
    path = _write(
        tmp_path,
        _variant("tiny-arm", _http("http://m/1"), **arm),
        _variant("large", _http("http://m/16")),
        _variant("small", _http("http://m/2")),
    )
    assert _plan(path).variant == "small"
    assert _plan(path, memory=64).variant == "large"
    assert _plan(path, architecture="arm64").variant == "tiny-arm"
    with pytest.raises(RefusedError, match=r"no variant suits this machine \(amd64\): .*memory.*--variant"):
        _plan(path, memory=1)
    assert _plan(path, memory=1, variant="large").variant == "large"
    assert _plan(path, variant="tiny-arm").variant == "tiny-arm"
    with pytest.raises(UsageError, match="it has tiny-arm, large, small"):
        _plan(path, variant="none")


def test_settings_are_those_of_manifest_and_profile(tmp_path: Path) -> None:
    profile = {
        "kind": "DeviceProfile",
        "metadata": {"name": "pc"},
        "spec": {"architectures": ["amd64"], "engine": "llama.cpp", "runtime": {"threads": 3, "slots": 9}},
    }
    path = _write(
        tmp_path,
        _variant("int4", _http("http://m/1"), runtime={"contextLength": 512}),
        profiles=(profile,),
        runtime={"slots": 2, "maxQueue": 7, "contextLength": 64},
        evaluation={"enabled": False},
        service={"auth": {"apiKeysSecretRef": {"name": "orders-keys"}}},
        model={"name": "orders", "version": "v1", "signature": {"publicKeys": [
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"]}},
    )  # fmt: skip
    plan = _plan(path)
    environment = build_environment(plan, {"SLM_API_KEYS_FILE": "/k", "HOME": "/h"})
    assert plan.variant == "int4-pc"
    assert {key: environment.get(key) for key in ("SLM_ENGINE", "SLM_THREADS", "SLM_SLOTS")} == {
        "SLM_ENGINE": "llama.cpp",
        "SLM_THREADS": "3",
        "SLM_SLOTS": "2",
    }
    assert environment["SLM_CONTEXT_LENGTH"] == "512" and environment["SLM_MAX_QUEUE"] == "7"
    assert environment["SLM_EVALUATE"] == "false" and environment["HOME"] == "/h"
    assert "SLM_API_KEYS_FILE" not in environment
    assert [note.split(" ", 1)[0] for note in plan.notes] == ["spec.model.signature", "spec.service.auth"]


def test_nothing_is_kept_and_an_adapter_that_is_the_default_answers(tmp_path: Path) -> None:
    adapter = {"name": "swiss", "url": "http://m/swiss.onnx_adapter", "sha256": "a" * 64, "size": 7}
    path = _write(
        tmp_path,
        _variant("int4", _http("http://m/1")),
        adaptation={"sites": ["zurich-hb"]},
        overrides=[{"name": "here", "nodeSelector": {}, "adapters": [adapter | {"default": True}]}],
    )
    plan = _plan(path)
    assert plan.variant == "int4-here"
    assert [note.split(":")[0] for note in plan.notes] == ["spec.adaptation"]
    environment = build_environment(plan, {})
    assert environment["SLM_DEFAULT_ADAPTER"] == "swiss"
    assert not environment.keys() & {"SLM_EXAMPLES_DIR", "SLM_EXAMPLES"}


def test_a_variant_that_cannot_be_asked_is_left_out(tmp_path: Path) -> None:
    hub = {"hf": {"repo": "owner/model"}}
    path = _write(tmp_path, _variant("hub", hub), _variant("web", _http("http://m/1")))
    plan = _plan(path)
    assert plan.variant == "web"
    assert plan.notes == ("variant hub is left out: only the operator can ask it",)
    with pytest.raises(RefusedError, match="variant hub: only the operator"):
        _plan(path, variant="hub")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"hf": {"repo": "owner/model"}}, "kind hf"),
        ({"oci": {"image": "registry.example/a:1"}}, "kind oci"),
        (_http("http://m/m.json", secretRef={"name": "token"}), "credential"),
    ],
)
def test_sources_that_only_the_operator_can_ask(source: Body, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        resolve_source(Source.model_validate(source))


def test_a_manifest_on_a_web_server(web: str) -> None:
    url = f"{web}/v1-int4/slm-manifest.json"
    text = (MODEL / "slm-manifest.json").read_bytes()
    pinned = hashlib.sha256(text).hexdigest()
    resolved = resolve_source(Source.model_validate(_http(url, sha256=pinned)))
    assert resolved.manifest.digest == parse_manifest(text).digest
    assert resolved.manifest.files[0].url == f"{web}/v1-int4/genai_config.json"
    assert resolved.geometry is not None
    with pytest.raises(RefusedError, match="the spec pins 0000"):
        resolve_source(Source.model_validate(_http(url, sha256="0" * 64)))
    with pytest.raises(CliError, match="answers 404"):
        resolve_source(Source.model_validate(_http(f"{web}/none.json")))


def test_files_in_a_list_are_measured(web: str) -> None:
    files = [{"path": f.path, "sha256": f.sha256} for f in _files()]
    resolved = resolve_source(Source.model_validate(_http(f"{web}/v1-int4/", files=files)))
    assert resolved.manifest.digest == parse_manifest((MODEL / "slm-manifest.json").read_bytes()).digest
    missing = [{"path": "none", "sha256": "0" * 64}]
    with pytest.raises(RefusedError, match=r"files\[\].size"):
        resolve_source(Source.model_validate(_http(f"{web}/v1-int4/", files=missing)))


def _files() -> tuple[ManifestFile, ...]:
    return parse_manifest((MODEL / "slm-manifest.json").read_bytes()).files


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"name": "orders", "from": {"name": "chat"}}, "variants": []}, "spec.model.from"),
        ({"variants": []}, "give at least 1"),
        ({"model": 3}, "spec.model"),
    ],
)
def test_files_that_say_nothing_to_try(tmp_path: Path, changes: Body, words: str) -> None:
    path = _write(tmp_path, **changes)
    with pytest.raises(UsageError, match=words):
        read_wanted(path)
    path.write_text("kind: Pod\n")
    with pytest.raises(UsageError, match="holds 0 objects"):
        read_wanted(path)


def test_where_models_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert default_store({}) == Path("/home/me/.local/share/slmops/store")
    assert default_store({"XDG_DATA_HOME": "/data"}) == Path("/data/slmops/store")
    assert default_store({"XDG_DATA_HOME": "not/absolute"}) == default_store({})


def test_a_missing_runtime_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_runtime()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(UsageError, match=r"\(uvicorn\).*slmops\[runtime\]"):
        check_runtime()
    with pytest.raises(UsageError, match="Linux"):
        check_runtime("darwin")


def test_this_machine_is_known() -> None:
    machine = observe_machine()
    assert machine.architecture and machine.memory_bytes > 1 << 28


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"msg": "fetching model", "files": 3, "bytes": 2048}, "fetching 3 file(s), 2KiB"),
        ({"msg": "fetching", "file": "m\x1b", "bytes": 512, "total": 1024, "bytesPerSecond": 100},
         "  m: 50% of 1KiB, 100B/s"),
        ({"msg": "fetching", "file": "m", "bytes": "x"}, "  m: 0B, 0B/s"),
        ({"msg": "model is in the store", "digest": "sha256:1", "bytesReused": 5},
         "verified sha256:1, 5B were there"),
        ({"msg": "retrying", "level": "warning", "why": "timeout"}, "timeout"),
        ({}, ""),
    ],
)  # fmt: skip
def test_progress_for_people(line: Body, text: str) -> None:
    assert progress_text(line) == text


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(_write(tmp_path, _variant("int4", _http("http://m/1"))))
    assert run_cli(ScriptedCluster(), "try", "-f", path, "--port", "70000", capsys=capsys).code == 2
    ran = run_cli(ScriptedCluster(), "try", "-f", str(tmp_path / "none"), capsys=capsys)
    assert ran.code == 2 and "cannot be read" in ran.err


def _try(path: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "slmcli", "try", "-f", str(path), *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "operator")}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def test_a_model_is_fetched_served_and_talked_to(web: str, tmp_path: Path) -> None:
    source = _http(f"{web}/v1-int4/slm-manifest.json")
    path = _write(tmp_path, _variant("int4", source), runtime={"slots": 2, "contextLength": 128})
    process = _try(path, "--port", "0", "--store", str(tmp_path / "store"))
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                break
        text = "\n".join(lines)
        assert "verified sha256:" in text and "golden set: " in text, text
        url = next(line for line in lines if " serves at " in line).split(" serves at ")[1].split()[0]
        with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            (model,) = client.models.list().data
            assert model.id == "orders" and (model.model_extra or {})["max_model_len"] == 128
            answer = client.chat.completions.create(
                model="orders", messages=[{"role": "user", "content": "one coffee please"}], temperature=0
            )
            assert answer.choices[0].message.content
        curl = next(line for line in lines if line.startswith("curl "))
        assert json.loads(curl.split("-d ")[1].strip("'"))["model"] == "orders"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(30) == 0 and "the model stays in the store" in rest
    finally:
        process.kill()
        process.wait(10)


def test_what_cannot_be_fetched_or_served_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    files = [{"path": "config.json", "size": 2, "sha256": "0" * 64}]
    source = {"file": {"path": str(tmp_path), "files": files}}
    path = _write(tmp_path, _variant("int4", source))
    process = _try(path, "--store", str(tmp_path / "store"))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "error: the model could not be fetched: IntegrityMismatch" in out
    files[0]["sha256"] = hashlib.sha256(b"{}").hexdigest()
    process = _try(_write(tmp_path, _variant("int4", source)), "--store", str(tmp_path / "store"))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "error: the server ended with code 1: Unfit" in out
