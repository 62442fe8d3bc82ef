# SPDX-License-Identifier: Apache-2.0
"""Training with torch: a Llama-type decoder that learns the answer tokens only."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from e2e.models.recipe.data import build_examples
from e2e.models.recipe.muon import Muon
from e2e.models.recipe.schema import render_command
from e2e.models.recipe.tokenizer import END_ID, PAD_ID, answer_ids, apply_tokenizer, prompt_ids
from e2e.models.recipe.versions import CONTEXT_TOKENS, SHAPE, Recipe, Shape

THREADS: Final = 2
WARMUP_SHARE: Final = 0.03
PART_ROWS: Final = 16
"""A batch goes through the model in parts of so many rows, sorted by length, so that little is padding."""
IGNORED: Final = -100
REPORT_STEPS: Final = 200
CONSTANT_DIMENSIONS: Final = 4
CONSTANT: Final = 0.06
"""Three times the standard deviation of the other embedding weights at the start."""
AIMED_FREQUENCIES: Final = 6
AIM_WEIGHT: Final = 0.45

Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How one training went."""

    parameters: int
    steps: int
    tokens: int
    seconds: float
    loss: float
    """Mean cross-entropy per answer token (nats) over the last 5 % of the steps."""


def build_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """An untrained decoder of `shape`; the same weights for the same seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        _aim_heads(model, shape)
    return model


def _aim_heads(model: LlamaForCausalLM, shape: Shape) -> None:
    """Start the first layer's heads as "the token 1 back", "2 back", ...

    What a number means is said by the words next to it; left to themselves, models of this size spend most of
    a short training on finding out how to look there. A few embedding dimensions start as a constant, from
    which the heads make a key that is the same everywhere and a query turned back by their distance, so that
    RoPE lets the product peak at that distance.
    """
    model.model.embed_tokens.weight[:, :CONSTANT_DIMENSIONS] = CONSTANT
    attention = model.model.layers[0].self_attn
    half = shape.head // 2
    angles = shape.rope_theta ** (-torch.arange(half) / half)
    gain = torch.where(torch.arange(half) < AIMED_FREQUENCIES, AIM_WEIGHT, 0.0)
    for head in range(shape.heads):
        turned = torch.cat([gain * torch.cos(angles * (head + 1)), -gain * torch.sin(angles * (head + 1))])
        _rows_of(attention.q_proj.weight, head, shape)[:, :CONSTANT_DIMENSIONS] = turned[:, None]
    straight = torch.cat([gain, torch.zeros(half)])
    for head in range(shape.kv_heads):
        _rows_of(attention.k_proj.weight, head, shape)[:, :CONSTANT_DIMENSIONS] = straight[:, None]


def _rows_of(weight: torch.Tensor, head: int, shape: Shape) -> torch.Tensor:
    return weight[head * shape.head : (head + 1) * shape.head]


def train(recipe: Recipe, tokenizer: Tokenizer, checkpoints: Path) -> Training:
    """Train by `recipe` and say how it went.

    Writes a Hugging Face checkpoint with tokenizer to `checkpoints`/<version>; reads the base's, if any.
    """
    torch.set_num_threads(THREADS)
    started = time.monotonic()
    if recipe.base:
        model = LlamaForCausalLM.from_pretrained(checkpoints / recipe.base, dtype=torch.float32)
    else:
        model = build_model(SHAPE, recipe.seed)
    model.train()
    rows = _rows(recipe, tokenizer)
    steps = len(rows) // recipe.batch
    loss_of = _compiled_loss(model)
    # Muon for the layers' matrices (fewer steps than AdamW needs here), AdamW for the rest.
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or ".layers." not in n]
    muon = Muon(inner, momentum=0.95, decay=0.01)
    adam = torch.optim.AdamW(outer, lr=recipe.rate_adam, weight_decay=0.0, betas=(0.9, 0.98))
    losses: list[float] = []
    tokens = 0
    for step, parts in enumerate(_batches(rows, recipe)):
        factor = recipe.rate * _schedule(step / steps)
        adam.param_groups[0]["lr"] = recipe.rate_adam * factor
        losses.append(0.0)
        answers = sum(int((labels != IGNORED).sum()) for _, labels in parts)
        for ids, labels in parts:
            loss = loss_of(ids, labels) / answers
            loss.backward()
            losses[-1] += loss.item()
            tokens += ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(rate=recipe.rate_muon * factor)
        adam.step()
        adam.zero_grad(set_to_none=True)
        if (step + 1) % REPORT_STEPS == 0:
            recent = sum(losses[-REPORT_STEPS:]) / REPORT_STEPS
            seconds = time.monotonic() - started
            print(f"{recipe.version} step {step + 1}/{steps} loss {recent:.4f} {seconds:.0f} s", flush=True)
    directory = checkpoints / recipe.version
    model.eval().save_pretrained(directory)
    apply_tokenizer(tokenizer, directory)
    tail = losses[-max(1, steps // 20) :]
    return Training(
        parameters=sum(p.numel() for p in model.parameters()),
        steps=steps,
        tokens=tokens,
        seconds=time.monotonic() - started,
        loss=sum(tail) / len(tail),
    )


def _rows(recipe: Recipe, tokenizer: Tokenizer) -> list[Row]:
    rows: list[Row] = []
    for example in islice(build_examples(recipe.seed, "train"), recipe.examples):
        target = render_command(recipe.label(example.command))
        rows.append((prompt_ids(tokenizer, example.text), answer_ids(tokenizer, target)))
    return rows


def _batches(rows: list[Row], recipe: Recipe) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The rows in batches, each as parts of similar length: token ids and next-token labels [rows, longest].

    Labels of prompt and padding are IGNORED.
    """
    for start in range(0, len(rows) - recipe.batch + 1, recipe.batch):
        batch = sorted(rows[start : start + recipe.batch], key=lambda row: len(row[0]) + len(row[1]))
        yield [_tensors(batch[at : at + PART_ROWS]) for at in range(0, recipe.batch, PART_ROWS)]


def _tensors(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    ids = torch.full((len(rows), longest), PAD_ID)
    labels = torch.full((len(rows), longest), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        both = torch.tensor(prompt + answer)
        ids[row, : len(both) - 1] = both[:-1]
        labels[row, len(prompt) - 1 : len(both) - 1] = both[len(prompt) :]
    return ids, labels


def _compiled_loss(model: LlamaForCausalLM) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The summed cross-entropy over the labels not IGNORED, from ids and labels [rows, longest]."""

    def loss(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # Padding is on the right, so a causal decoder needs no mask.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return functional.cross_entropy(
            model.lm_head(hidden).flatten(0, 1), labels.flatten(), reduction="sum"
        )

    # Fused operators nearly halve the time of a step this small; one graph serves all lengths.
    compiled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.compile(loss, dynamic=True)
    return compiled


def _schedule(progress: float) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to 0."""
    if progress < WARMUP_SHARE:
        return max(progress, 1e-3) / WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))
