# SPDX-License-Identifier: Apache-2.0
"""A training from the command line: a wording that the model does not know, and files that it cannot use."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from e2e.models.recipe.data import Example as Case
from e2e.models.recipe.dialect import shifted_cases
from e2e.models.recipe.evaluate import assess
from e2e.models.recipe.golden import build_golden
from e2e.models.recipe.schema import parse_command
from e2e.models.recipe.tokenizer import answer_ids, prompt_ids
from slmopt.__main__ import main
from slmopt.autodiff.network import Network
from slmopt.graph import OnnxExport, save_onnx
from slmopt.training.fit import cross_entropy, draw_matrices
from slmopt.training.tokens import MAX_BATCH_TOKENS, Example, build_batches, split_examples
from slmwire.jobs import ADAPTER_FILE, TRAIN_TOKENS_FILE, TrainOrder
from slmwire.reasons import Reason, Termination, parse_termination
from tests.unit.slmopt.kit import ORDERS, make_half, run_recipe

V1_INT4 = ORDERS.parent / "v1-int4"
LORA: Mapping[str, Any] = {"loraInputs": {}}
_TOKENIZER = Tokenizer.from_file(str(V1_INT4 / "tokenizer.json"))
CASES = [Case(text=text, command=parse_command(answer)) for text, answer in shifted_cases(220, 1)]


def _lines(cases: Iterable[Case]) -> str:
    rows = [
        {"prompt": prompt_ids(_TOKENIZER, c.text), "answer": answer_ids(_TOKENIZER, c.target)} for c in cases
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


class Pod:
    """The folders of one training."""

    def __init__(self, folder: Path, model: Path, *, tokens: str | None, **order: Any) -> None:
        self.model, self.work, self.log, self.job = (folder / n for n in ("model", "work", "log", "job.json"))
        self.model = model
        self.work.mkdir(parents=True)
        if tokens is not None:
            (self.work / Path(TRAIN_TOKENS_FILE).name).write_text(tokens)
        settings: dict[str, Any] = {"name": "local", "retention_seconds": 1, "min_examples": 1} | order
        self.job.write_text(TrainOrder(**settings).to_json())

    @property
    def arguments(self) -> list[str]:
        places = ["--model-dir", self.model, "--work", self.work, "--job", self.job]
        return ["--termination-log", str(self.log), "train", *map(str, places)]

    def train(self) -> int:
        return main(self.arguments)

    @property
    def said(self) -> Termination:
        termination = parse_termination(self.log.read_text())
        assert termination is not None
        return termination

    @property
    def adapter(self) -> Path:
        return self.work / Path(ADAPTER_FILE).name

    def matrices(self) -> dict[str, NDArray[Any]]:
        read = ort.AdapterFormat.read_adapter(str(self.adapter))
        # Copies: the values lie in the file that the reader has mapped.
        return {name: value.numpy().copy() for name, value in read.get_parameters().items()}

    def start(self) -> "subprocess.Popen[str]":
        """The training as a process of its own."""
        command = [sys.executable, "-m", "slmopt", *self.arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


@pytest.fixture(scope="module")
def adaptable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adaptable") / "v1-int4"
    run_recipe(directory, LORA, source=V1_INT4)
    return directory


def _exact(model: Path, matrices: Mapping[str, NDArray[Any]], cases: list[Case], scratch: Path) -> float:
    """Share answered exactly on onnxruntime, the adapter's matrices in place of the defaults."""
    export = OnnxExport(model)
    for name, values in matrices.items():
        export.write(name, values)
    shutil.copytree(model, scratch)
    save_onnx(export.model, scratch / "model.onnx")
    return assess(scratch, cases)[0].exact


def test_a_training_that_crashes_leaves_no_memory_behind(tmp_path: Path) -> None:
    """Token ids are text to whoever has the model."""
    pod = Pod(tmp_path, tmp_path, tokens=None)
    program = (
        "import ctypes, resource, sys; from slmopt.__main__ import main; main(sys.argv[1:]);"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *pod.arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "(0, 0) 0"


def test_a_shifted_wording_is_learnt_and_the_rest_is_kept(adaptable: Path, tmp_path: Path) -> None:
    learnt, held = CASES[:120], CASES[120:]
    pod = Pod(tmp_path, adaptable, tokens=_lines(learnt))
    # In a process of its own numpy has one thread, as in the image.
    with pod.start() as process:
        process.communicate()
    assert process.returncode == 0
    assert pod.said.reason == "" and pod.said.digest.startswith("sha256:")
    matrices = pod.matrices()
    golden = list(build_golden())
    before = [_exact(adaptable, {}, c, tmp_path / f"a{n}") for n, c in enumerate((held, golden))]
    after = [_exact(adaptable, matrices, c, tmp_path / f"b{n}") for n, c in enumerate((held, golden))]
    assert before[0] < 0.5 and after[0] > 0.8
    assert after[1] >= before[1] - 0.05


def test_the_file_holds_every_matrix_in_the_inputs_type(adaptable: Path, tmp_path: Path) -> None:
    pod = Pod(tmp_path, adaptable, tokens=_lines(CASES[:12]), max_epochs=1)
    assert pod.train() == 0
    session = ort.InferenceSession(str(adaptable / "model.onnx"), providers=["CPUExecutionProvider"])
    wanted = {n.name: (tuple(n.shape), np.dtype(np.float32)) for n in session.get_overridable_initializers()}
    assert {n: (m.shape, m.dtype) for n, m in pod.matrices().items()} == wanted
    assert [path.name for path in pod.work.iterdir() if path.name.startswith(".")] == []


def test_a_model_in_half_precision_gets_matrices_of_that(tmp_path: Path) -> None:
    half = make_half(tmp_path / "half")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ORDERS / name, half / name)
    run_recipe(tmp_path / "model", LORA, source=half)
    pod = Pod(tmp_path, tmp_path / "model", tokens=_lines(CASES[:12]), max_epochs=1)
    assert pod.train() == 0
    assert {m.dtype for m in pod.matrices().values()} == {np.dtype(np.float16)}


def test_the_same_seed_gives_the_same_file(adaptable: Path, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((3, 3, 4)):
        tokens = _lines(CASES[:12])
        pod = Pod(tmp_path / str(number), adaptable, tokens=tokens, max_epochs=1, seed=seed)
        assert pod.train() == 0
        found.append(pod.said.digest)
    assert found[0] == found[1] != found[2]


def test_no_token_is_logged(adaptable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod = Pod(tmp_path, adaptable, tokens=_lines(CASES[:12]), max_epochs=2)
    assert pod.train() == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["message"] for row in rows] == ["training", *["epoch is done"] * 2, "adapter is trained"]
    assert not any(isinstance(value, list) for row in rows for value in row.values())


GOOD = json.dumps({"prompt": [2, 9], "answer": [9, 1]})


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("", "holds no example"),
        ("{}\n", "line 1 is no example"),
        (f"{GOOD}\n[]\n", "line 2 is no example"),
        (f"{GOOD}\nnot json", "line 2 is no example"),
        ('{"prompt": [], "answer": [1]}', "line 1 is no example"),
        ('{"prompt": [2], "answer": []}', "line 1 is no example"),
        ('{"prompt": [2], "answer": [640]}', "token ids below 640"),
        ('{"prompt": [-1], "answer": [1]}', "token ids below 640"),
        ('{"prompt": [true], "answer": [1]}', "line 1 is no example"),
        (json.dumps({"prompt": [2] * 300, "answer": [1]}), "longer than the model's context of 256"),
    ],
)
def test_tokens_that_it_cannot_use_are_refused(
    adaptable: Path, tmp_path: Path, tokens: str, message: str
) -> None:
    pod = Pod(tmp_path, adaptable, tokens=tokens)
    assert pod.train() == 1
    assert pod.said.reason == Reason.UNFIT and message in pod.said.message
    assert not pod.adapter.exists()


def test_a_missing_file_is_named(adaptable: Path, tmp_path: Path) -> None:
    pod = Pod(tmp_path, adaptable, tokens=None)
    assert pod.train() == 1 and "tokens.jsonl cannot be read" in pod.said.message


@pytest.mark.parametrize(
    ("field", "value"), [("max_epochs", 0), ("learning_rate", 0.0), ("learning_rate", 2.0)]
)
def test_an_order_out_of_range_is_refused(adaptable: Path, tmp_path: Path, field: str, value: float) -> None:
    pod = Pod(tmp_path, adaptable, tokens=GOOD, **{field: value})
    assert pod.train() == 1 and field in pod.said.message


def test_an_order_that_is_none_is_refused(adaptable: Path, tmp_path: Path) -> None:
    pod = Pod(tmp_path, adaptable, tokens=GOOD)
    pod.job.write_text('{"steps": []}')
    assert pod.train() == 1 and "no order to train an adapter" in pod.said.message


def test_a_model_without_inputs_names_the_step(tmp_path: Path) -> None:
    pod = Pod(tmp_path, V1_INT4, tokens=_lines(CASES[:12]))
    assert pod.train() == 1
    assert pod.said.reason == Reason.UNFIT and "add the step loraInputs" in pod.said.message


def test_a_model_for_another_engine_is_refused(tmp_path: Path) -> None:
    pod = Pod(tmp_path, ORDERS.parent / "v1-litert", tokens=GOOD)
    assert pod.train() == 1 and "is no onnxruntime model" in pod.said.message


def test_a_rate_that_blows_up_is_not_kept(adaptable: Path, tmp_path: Path) -> None:
    pod = Pod(tmp_path, adaptable, tokens=_lines(CASES[:20]), learning_rate=1.0, max_epochs=3)
    code = pod.train()
    # Either no epoch was better than none, or the numbers ran off; what is written stays finite.
    assert code == 1 or all(np.isfinite(m).all() for m in pod.matrices().values())


def test_it_stops_when_it_is_told_to(adaptable: Path, tmp_path: Path) -> None:
    pod = Pod(tmp_path, adaptable, tokens=_lines(CASES[:120]), max_epochs=1000)
    with pod.start() as process:
        assert process.stdout is not None
        while "epoch is done" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) == 143
    assert [path.name for path in pod.work.iterdir()] == [Path(TRAIN_TOKENS_FILE).name]


def test_the_first_step_starts_from_the_model_itself(adaptable: Path) -> None:
    network = Network(adaptable)
    matrices = draw_matrices(network, 1)
    ids, rows = np.array([prompt_ids(_TOKENIZER, CASES[0].text)]), np.array([3, 5])
    plain = network.evaluate(ids, [ids.shape[1]], rows, {})
    assert np.array_equal(network.evaluate(ids, [ids.shape[1]], rows, matrices), plain)
    assert all(np.any(m) == name.endswith("lora_A") for name, m in matrices.items())


def test_the_gradient_of_the_loss_is_right() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((4, 6)), np.array([0, 5, 2, 2])
    _, gradient = cross_entropy(logits, targets)
    direction = rng.standard_normal(logits.shape)
    ends = [cross_entropy(logits + sign * 1e-6 * direction, targets)[0] for sign in (1, -1)]
    assert np.sum(gradient * direction) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)
    assert np.isfinite(cross_entropy(logits * 1e4, targets)[0])


EXAMPLES = st.lists(
    st.builds(
        lambda p, a, base: Example(prompt=tuple(range(base, base + p)), answer=tuple(range(900, 900 + a))),
        st.integers(1, 900),
        st.integers(1, 40),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=30,
)


@given(examples=EXAMPLES, seed=st.integers(0, 9))
def test_every_answer_is_in_one_batch_behind_its_prompt(examples: list[Example], seed: int) -> None:
    rng = np.random.default_rng(seed)
    learnt, held = split_examples(examples, rng)
    assert len(held) == len(examples) // 10 and len(learnt) + len(held) == len(examples)
    found: list[tuple[int, ...]] = []
    for batch in build_batches(examples, rng):
        assert batch.ids.size <= MAX_BATCH_TOKENS or len(batch.ids) == 1
        flat = batch.ids.reshape(-1)
        ends = np.flatnonzero(batch.targets == 900)
        for start, stop in zip(ends, [*ends[1:], len(batch.targets)], strict=True):
            answer, rows = batch.targets[start:stop], batch.rows[start:stop]
            row = rows[0] // batch.ids.shape[1]
            prompt = batch.ids[row][: rows[0] % batch.ids.shape[1] + 1]
            assert np.array_equal(flat[rows[1:]], answer[:-1])
            found.append((*prompt, *answer))
    assert sorted(found) == sorted(example.prompt + example.answer for example in examples)
