# SPDX-License-Identifier: Apache-2.0
"""A training from the files that the container before left to the file of the adapter."""

import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

from slmopt.autodiff.network import Matrices, Network
from slmopt.errors import JobError, unfit
from slmopt.log import log
from slmopt.model_dir import GENAI_CONFIG, describe_format, hash_file, read_json
from slmopt.training.fit import fit_adapter
from slmopt.training.tokens import read_examples
from slmwire.jobs import ADAPTER_FILE, TRAIN_TOKENS_FILE, TrainOrder, parse_order

SCRATCH: Final = ".adapter~"
"""How the names of folders begin that a killed training may leave."""


def train_adapter(model_dir: Path, work: Path, job: Path) -> str:
    """Write the adapter's file into `work`; its digest, `sha256:<hex>`. Raises OptimizeError or JobError.

    Needs the model's largest matrix in floats, up to 64 MiB of others, and what `autodiff.network` says for
    one batch of at most 1,024 tokens (or one example, where that is longer); the Python process itself takes
    about 100 MB.
    """
    order = _read_order(job)
    if describe_format(model_dir) != "onnx":
        raise unfit(
            f"{model_dir} is no onnxruntime model; only those with inputs for adapters (step loraInputs) can "
            "be trained at a site"
        )
    vocab, context = _limits(model_dir)
    path = work / Path(TRAIN_TOKENS_FILE).name
    examples, skipped = read_examples(path, vocab=vocab, context=context)
    if skipped:
        log("examples are longer than the model's context and left out", level="warning", examples=skipped)
    began = time.monotonic()
    network = Network(model_dir)
    fitted = fit_adapter(
        network, examples, max_epochs=order.max_epochs, rate=order.learning_rate, seed=order.seed
    )
    target = work / Path(ADAPTER_FILE).name
    write_adapter(network, fitted.matrices, target)
    digest = f"sha256:{hash_file(target)}"
    log(
        "adapter is trained",
        adapter=order.name,
        examples=len(examples),
        epochs=fitted.epochs,
        best_epoch=fitted.best_epoch,
        loss_before=round(fitted.loss_before, 4),
        loss_after=round(fitted.loss_after, 4),
        seconds=round(time.monotonic() - began, 1),
        digest=digest,
    )
    return digest


def _read_order(path: Path) -> TrainOrder:
    try:
        order = parse_order(path.read_bytes())
    except OSError as error:
        raise JobError(f"{path} cannot be read ({error.strerror}); name the job file") from error
    except ValueError as error:
        raise JobError(f"{path}: {error}") from error
    if not 1 <= order.max_epochs <= 10_000 or not 0 < order.learning_rate <= 1:
        raise JobError(
            f"{path}: max_epochs is {order.max_epochs} and learning_rate {order.learning_rate}; use 1 to "
            "10000 epochs, and a rate above 0 and up to 1"
        )
    return order


def _limits(model_dir: Path) -> tuple[int, int]:
    """Size of the vocabulary, and of the context in tokens."""
    model = read_json(model_dir, GENAI_CONFIG).get("model", {})
    try:
        return int(model["vocab_size"]), int(model["context_length"])
    except (KeyError, TypeError, ValueError) as error:
        raise unfit(f"{GENAI_CONFIG} lacks or misstates {error}; export the model again") from error


def write_adapter(network: Network, matrices: Matrices, target: Path) -> None:
    """Write onnxruntime's adapter format, each matrix in the type of its input; whole or not at all."""
    # Here and not above: the library takes memory that training needs first.
    import onnxruntime as ort

    stored = {name: np.ascontiguousarray(m, network.adaptable[name].dtype) for name, m in matrices.items()}
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(m) for name, m in sorted(stored.items())})
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        adapter.export_adapter(str(made))
        made.chmod(0o644)
        made.replace(target)
