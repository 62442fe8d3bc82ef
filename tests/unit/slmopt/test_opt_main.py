# SPDX-License-Identifier: Apache-2.0
"""The command line as the containers of a Job run it: files in, exit code and termination message out."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slmopt.__main__ import main
from slmwire.jobs import PublishReport, parse_report
from slmwire.manifest import parse_manifest
from slmwire.reasons import Termination, parse_termination
from tests.unit.slmopt.kit import ORDERS, exact_match


class Pod:
    """A Job's folders."""

    def __init__(self, folder: Path, job: Any) -> None:
        self.folder, self.work, self.log = folder, folder / "work", folder / "termination"
        self.work.mkdir()
        self.source = ORDERS
        (folder / "job.json").write_text(job if isinstance(job, str) else json.dumps(job))

    def step(self, index: int) -> int:
        return self._run("step", "--index", str(index))

    def publish(self, *extra: str) -> int:
        return self._run("publish", "--secrets", str(self.folder / "secrets"), *extra)

    def _run(self, *command: str) -> int:
        self.log.unlink(missing_ok=True)
        places = ["--job", self.folder / "job.json", "--work", self.work, "--source", self.source]
        return main(["--termination-log", str(self.log), *command, *map(str, places)])

    @property
    def said(self) -> Termination:
        termination = parse_termination(self.log.read_text())
        assert termination is not None
        return termination


def test_steps_one_after_the_other_then_published(tmp_path: Path) -> None:
    target = {"pvc": {"claim": "models", "path": "orders/small", "mountPath": str(tmp_path / "volume")}}
    steps = [{"slice": {"feedForwardPercent": 12}}, {"quantizeInt4": {"exclude": ["lm_head"]}}]
    pod = Pod(tmp_path, {"steps": steps, "publish": target})
    assert pod.step(0) == 0
    first = pod.said
    assert (first.reason, first.digest) == ("", read_digest(pod.work / "step-0"))
    assert pod.step(1) == 0
    assert pod.publish() == 0
    report = parse_report(pod.log.read_text())
    assert isinstance(report, PublishReport)
    assert report.digest == read_digest(pod.work / "step-1") == read_digest(tmp_path / "volume/orders/small")
    assert exact_match(tmp_path / "volume" / "orders" / "small") >= 0.95
    assert sorted(path.name for path in pod.work.iterdir()) == ["step-0", "step-1"]


def read_digest(folder: Path) -> str:
    return parse_manifest((folder / "slm-manifest.json").read_bytes()).digest


def test_a_container_that_starts_again_finds_its_step_done(tmp_path: Path) -> None:
    pod = Pod(tmp_path, {"steps": [{"quantizeInt4": {}}]})
    (pod.work / ".step-0~killed").mkdir()
    assert pod.step(0) == 0
    assert [path.name for path in pod.work.iterdir()] == ["step-0"]
    before, made = pod.said.digest, (pod.work / "step-0").stat().st_mtime_ns
    assert pod.step(0) == 0
    assert (pod.said.digest, (pod.work / "step-0").stat().st_mtime_ns) == (before, made)


@pytest.mark.parametrize(
    ("job", "index", "words"),
    [
        ("{", 0, "not JSON"),
        ({"steps": [{"quantizeInt4": {"block": 1}}]}, 0, "steps[0].quantizeInt4: unknown field block"),
        ({"steps": [{"quantizeInt4": {}}]}, 3, "--index is 3; the job has steps 0 to 0"),
        ({"steps": [{"quantizeInt4": {}}, {"quantizeInt8": {}}]}, 1, "the step before has to make it"),
        ({"steps": [{"convert": {"to": "litert"}}]}, 0, "needs litert_torch, which this image does not have"),
        ({"steps": [{"convert": {"to": "onnx"}}]}, 0, "the source is onnx already; take the step out"),
    ],
)
def test_failures_say_reason_and_cure(tmp_path: Path, job: Any, index: int, words: str) -> None:
    pod = Pod(tmp_path, job)
    assert pod.step(index) == 1
    assert (pod.said.reason, words in pod.said.message) == ("Unfit", True), pod.said.message
    assert list(pod.work.iterdir()) == []


def test_publish_needs_a_target(tmp_path: Path) -> None:
    pod = Pod(tmp_path, {"steps": []})
    assert pod.publish() == 1
    assert "publish is missing; name one of oci, s3, pvc" in pod.said.message


def test_what_the_servers_need_must_be_there(tmp_path: Path) -> None:
    pod = Pod(tmp_path, {"steps": [{"quantizeInt4": {}}]})
    pod.source = tmp_path / "source"
    shutil.copytree(ORDERS, pod.source)
    config = pod.source / "tokenizer_config.json"
    config.write_text(json.dumps({"model_max_length": 256}))
    assert pod.step(0) == 1
    assert "the source has no chat template; put it into tokenizer_config.json" in pod.said.message
    (pod.source / "tokenizer.json").unlink()
    assert pod.step(0) == 1
    assert "the source has no tokenizer.json; add it" in pod.said.message
    assert pod.said.reason == "Unfit"


def test_a_checkpoint_needs_the_image_with_torch(tmp_path: Path) -> None:
    pod = Pod(tmp_path, {"steps": [{"convert": {"to": "litert"}}, {"convert": {"to": "gguf"}}]})
    pod.source = tmp_path / "source"
    pod.source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ORDERS / name, pod.source / name)
    (pod.source / "model.safetensors").write_bytes(b"")
    assert pod.step(0) == 1
    assert "needs litert_torch" in pod.said.message
    assert "slmops-optimizer:<version>-torch" in pod.said.message
    shutil.copytree(pod.source, pod.work / "step-0")
    assert pod.step(1) == 1
    assert "the source is huggingface, and this step works on exports" in pod.said.message


def test_a_recipe_on_a_laptop(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"steps": [{"prune": {"method": "nm"}}, {"quantizeInt8": {}}]}))
    arguments = ["run", "--recipe", str(recipe), str(ORDERS), str(tmp_path / "new" / "small")]
    assert main(arguments) == 0
    assert read_digest(tmp_path / "new" / "small")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["small"]
    assert main(arguments) == 1  # it exists


def test_a_source_of_hard_links_as_in_the_store(tmp_path: Path) -> None:
    pod = Pod(tmp_path, {"steps": [{"quantizeInt4": {}}]})
    shutil.copytree(ORDERS, tmp_path / "blobs")
    pod.source = tmp_path / "source"
    shutil.copytree(tmp_path / "blobs", pod.source, copy_function=os.link)
    assert pod.step(0) == 0, pod.said.message
    assert read_digest(tmp_path / "blobs") == read_digest(ORDERS)


def test_broken_files_are_named(tmp_path: Path) -> None:
    pod = Pod(tmp_path, {"steps": [{"quantizeInt4": {}}]})
    pod.source = tmp_path / "source"
    shutil.copytree(ORDERS, pod.source)
    data = pod.source / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1_000_000])
    assert pod.step(0) == 1
    assert "model.onnx.data ends before" in pod.said.message
    (pod.source / "model.onnx").write_bytes(b"\x00\xff" * 50)
    assert pod.step(0) == 1
    assert "model.onnx cannot be read as ONNX" in pod.said.message
    (pod.source / "genai_config.json").write_text('{"model": {"type": "llama"}}')
    assert pod.step(0) == 1
    assert "genai_config.json lacks or misstates 'decoder'; export the model again" in pod.said.message


@pytest.mark.parametrize(
    ("step", "place"),
    [
        ({"convert": {"to": "gguf", "type": "F32"}}, "gguf.GGUFWriter.write_tensors_to_file"),
        ({"slice": {"feedForwardPercent": 25, "importance": "activations"}}, "slmopt.activations.save_probe"),
        ({"quantizeInt8": {}}, "slmopt.graph.save_onnx"),
    ],
)
def test_a_full_volume_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: dict[str, Any], place: str
) -> None:
    def fail(*_args: Any, **_keywords: Any) -> None:
        # numpy's own error has no number.
        raise OSError("8192 requested and 0 written") if "gguf" in place else OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(place, fail)
    pod = Pod(tmp_path, {"steps": [step]})
    (pod.work / "slmopt-killed").mkdir()
    assert pod.step(0) == 1
    assert (pod.said.reason, "enlarge the volume" in pod.said.message) == ("InsufficientCapacity", True)
    assert list(pod.work.iterdir()) == []


def test_a_container_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    pod = Pod(tmp_path, {"steps": [{"quantizeInt4": {}}]})
    script = (
        "import os, runpy, signal, sys, slmopt.recipes, slmopt.model_dir as m\n"
        "m.sync_tree = lambda _: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.argv = ['slmopt', *sys.argv[1:]]\n"
        "runpy.run_module('slmopt.__main__', run_name='__main__', alter_sys=True)\n"
    )
    places = ["--job", str(tmp_path / "job.json"), "--work", str(pod.work), "--source", str(ORDERS)]
    command = [sys.executable, "-c", script, "step", "--index", "0", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr
    assert list(pod.work.iterdir()) == []
