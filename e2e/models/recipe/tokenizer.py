# SPDX-License-Identifier: Apache-2.0
"""The byte-level BPE of the model, learnt from the data set, and its chat template."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from e2e.models.recipe.data import build_examples
from e2e.models.recipe.versions import CONTEXT_TOKENS, TOKENIZER_SEED

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIALS: Final = (PAD, END, USER, ASSISTANT)
PAD_ID, END_ID, USER_ID, ASSISTANT_ID = range(4)
TRAINING_EXAMPLES: Final = 20_000

# A system message is accepted and left out: the model knows one task and was trained without any.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] + '<|end|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(vocab: int) -> Tokenizer:
    """A tokenizer of at most `vocab` entries, the specials first; the same for the same grammar."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _texts() -> Iterable[str]:
    for example in islice(build_examples(TOKENIZER_SEED, "train"), TRAINING_EXAMPLES):
        yield example.text
        yield example.target


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """What the chat template makes of one user message, ready for the answer."""
    body: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return [USER_ID, *body, END_ID, ASSISTANT_ID]


def answer_ids(tokenizer: Tokenizer, target: str) -> list[int]:
    """The answer with its end token."""
    body: list[int] = tokenizer.encode(target, add_special_tokens=False).ids
    return [*body, END_ID]


def apply_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `directory`."""
    tokenizer.save(str(directory / "tokenizer.json"))
    specials = {"bos_token": END, "eos_token": END, "pad_token": PAD}
    config = {
        **specials,
        "add_bos_token": False,
        "add_prefix_space": False,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_TOKENS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (directory / "special_tokens_map.json").write_text(json.dumps(specials, indent=2, sort_keys=True) + "\n")
