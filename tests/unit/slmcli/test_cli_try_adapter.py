# SPDX-License-Identifier: Apache-2.0
"""An override's LoRA adapter with a real fetcher and a real server: two sources, one model directory."""

import hashlib
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

from tests.unit.slmcli.cli_objects import Body
from tests.unit.slmserve.engine_models import build_llama_dir, write_adapter
from tests.unit.slmserve.process import ROOT


@pytest.fixture
def models(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder on a web server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def entry_of(path: Path) -> Body:
    data = path.read_bytes()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_server_has_the_adapter_beside_the_model(models: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = models
    base = folder / "model"
    base.mkdir()
    build_llama_dir(base)
    files = [{"path": path.name} | entry_of(path) for path in sorted(base.iterdir())]
    write_adapter(folder / "strong.gguf", scale=4.0)
    adapter = {"name": "wording", "url": f"{url}/strong.gguf"} | entry_of(folder / "strong.gguf")
    spec = {
        "model": {"name": "orders", "version": "v1"},
        "variants": [{"name": "f32", "source": {"http": {"url": f"{url}/model/", "files": files}}}],
        "placement": {"nodeSelector": {"matchLabels": {"edge": "true"}}},
        "runtime": {"slots": 1, "contextLength": 128},
        "overrides": [{"name": "here", "nodeSelector": {}, "adapters": [adapter]}],
    }
    file = tmp_path / "deployment.yaml"
    head = {"apiVersion": "slmops.dev/v1alpha1", "kind": "SLMDeployment", "metadata": {"name": "orders"}}
    file.write_text(yaml.safe_dump(head | {"spec": spec}))
    process = subprocess.Popen(
        [sys.executable, "-m", "slmcli", "try", "-f", str(file), "--port", "0", "--store",
         str(tmp_path / "store")],
        env=os.environ | {"PYTHONPATH": str(ROOT / "operator")}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                break
        served = [line for line in lines if " serves at " in line]
        assert served and "f32-here" in "\n".join(lines), "\n".join(lines)
        with OpenAI(
            base_url=served[0].split(" serves at ")[1].split()[0], api_key="none", max_retries=0
        ) as client:
            assert {model.id for model in client.models.list().data} >= {"orders", "orders:wording"}

            def answer(model: str) -> str | None:
                messages: Any = [{"role": "user", "content": "one coffee please"}]
                found = client.chat.completions.create(
                    model=model, messages=messages, temperature=0, max_tokens=12
                )
                return found.choices[0].message.content

            assert answer("orders:wording") != answer("orders"), "the adapter is in force"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)
