# SPDX-License-Identifier: Apache-2.0
"""The port between the server and whatever turns texts into vectors."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Embedder(Protocol):
    """Embeds token sequences; safe to call from several threads."""

    dimensions: int
    """Length of each vector."""
    max_length: int
    """Most tokens of one sequence."""

    def embed(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors [n, dimensions], L2-normalised, in the order of `batch`.

        Each sequence has 1..max_length token ids, special tokens included; ValueError otherwise.
        """
