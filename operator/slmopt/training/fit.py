# SPDX-License-Identifier: Apache-2.0
"""Gradient descent on the low-rank matrices of a model (LoRA, Hu et al. 2022), everything else frozen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from slmopt.autodiff.network import Matrices, Network
from slmopt.autodiff.node import Array
from slmopt.errors import unfit
from slmopt.log import log
from slmopt.lora import FIRST, SECOND
from slmopt.training.adam import AdamW
from slmopt.training.tokens import Batch, Example, build_batches, split_examples

DECAY: Final = 0.5
"""Of a step, relative to its rate: what the examples do not ask for goes back to no adapter."""
CLIP: Final = 1.0
WARM_UP: Final = 0.1
"""Share of the steps in which the rate rises."""
PATIENCE: Final = 10
"""Epochs without a better loss on what is held out, after which training ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What training has come to."""

    matrices: Matrices
    """Of the best epoch."""
    epochs: int
    """That were run."""
    best_epoch: int
    """Zero when none was better than no adapter."""
    loss_before: float
    """Mean cross entropy of a token of the held-out answers (of all, where none is held out), in nats."""
    loss_after: float


def draw_matrices(network: Network, seed: int) -> dict[str, Array]:
    """First matrices at random, second ones zero: the model starts where it is, and has somewhere to go.

    Raises OptimizeError (Unfit) for a model without inputs for an adapter.
    """
    if not network.adaptable:
        raise unfit(
            "the model has no inputs for adapters; add the step loraInputs to the recipe of its SLMModel, "
            "and serve what that makes"
        )
    rng = np.random.default_rng(seed)
    drawn: dict[str, Array] = {}
    for name in sorted(network.adaptable):
        default = network.adaptable[name]
        if default.ndim != 2 or not (FIRST in name) ^ (SECOND in name):
            raise unfit(
                f"{name} is an input with a default and no {FIRST[1:]} or {SECOND[1:]}; add inputs for "
                "adapters with the step loraInputs"
            )
        drawn[name] = np.zeros(default.shape, network.dtype)
        if FIRST in name:
            spread = 1 / math.sqrt(default.shape[0])
            drawn[name] += rng.standard_normal(default.shape).astype(network.dtype) * network.dtype.type(
                spread
            )
    return drawn


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """The mean over tokens in nats, and its gradient by the logits."""
    shifted = logits - logits.max(-1, keepdims=True)
    chances = np.exp(shifted)
    total = chances.sum(-1, keepdims=True)
    index = np.arange(len(targets))
    loss = float(np.mean(np.log(total[:, 0]) - shifted[index, targets]))
    chances /= total
    chances[index, targets] -= 1
    chances /= len(targets)
    return loss, chances


def fit_adapter(
    network: Network, examples: Sequence[Example], *, max_epochs: int, rate: float, seed: int
) -> Fitted:
    """The matrices that give `examples` their answers; raises OptimizeError (Unfit).

    The same for the same arguments on the same machine.
    """
    rng = np.random.default_rng(seed)
    matrices = draw_matrices(network, seed)
    learnt, held = split_examples(examples, rng)
    check = build_batches(held or learnt, rng)
    best = before = _mean_loss(network, check, matrices)
    kept = {name: value.copy() for name, value in matrices.items()}
    optimizer = AdamW(matrices, decay=DECAY, clip=CLIP)
    log("training", examples=len(learnt), held_out=len(held), matrices=len(matrices), loss=round(before, 4))
    step, last_better, epoch = 0, 0, 0
    for epoch in range(1, max_epochs + 1):
        batches = build_batches(learnt, rng)
        for batch in batches:
            logits, pull = network.differentiate(batch.ids, batch.lengths, batch.rows, matrices)
            _, gradient = cross_entropy(logits, batch.targets)
            optimizer.step(pull(gradient), rate * _schedule(step, max_epochs * len(batches)))
            step += 1
        loss = _mean_loss(network, check, matrices)
        if not math.isfinite(loss):
            raise unfit(f"training ran off in epoch {epoch}; lower spec.adaptation.training.learningRate")
        log("epoch is done", epoch=epoch, loss=round(loss, 4))
        if loss < best:
            best, last_better = loss, epoch
            kept = {name: value.copy() for name, value in matrices.items()}
        elif epoch - last_better >= PATIENCE:
            break
    return Fitted(matrices=kept, epochs=epoch, best_epoch=last_better, loss_before=before, loss_after=best)


def _schedule(step: int, steps: int) -> float:
    """Share of the rate: up to one at first, then down to nearly nothing along a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _mean_loss(network: Network, batches: Sequence[Batch], matrices: Matrices) -> float:
    total, tokens = 0.0, 0
    for batch in batches:
        logits = network.evaluate(batch.ids, batch.lengths, batch.rows, matrices)
        total += cross_entropy(logits, batch.targets)[0] * len(batch.targets)
        tokens += len(batch.targets)
    return total / tokens
