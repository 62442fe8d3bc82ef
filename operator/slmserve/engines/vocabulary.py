# SPDX-License-Identifier: Apache-2.0
"""The tokens of tokenizer.json, for engines that have to compare them with a model's own."""

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer

from slmserve.errors import StartError
from slmserve.tokenizer import TOKENIZER_FILE
from slmwire.reasons import Reason


def read_vocabulary(model_dir: Path) -> Mapping[int, str]:
    """Text by token id, added tokens included, as the file writes it; raises StartError (Unfit)."""
    try:
        tokenizer = Tokenizer.from_file(str(model_dir / TOKENIZER_FILE))
    except Exception as error:
        message = f"{TOKENIZER_FILE} cannot be read: {' '.join(str(error).split())[:300]}"
        raise StartError(Reason.UNFIT, message) from error
    texts = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    if not texts:
        raise StartError(Reason.UNFIT, f"{TOKENIZER_FILE} has no tokens; copy it again")
    return texts
