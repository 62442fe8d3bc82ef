# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from slmserve.backend import LoadedEngine
from slmserve.engines.registry import EngineOptions


def load(model_dir: Path, options: EngineOptions) -> LoadedEngine:
    taken = []
    while True:
        taken.append(bytearray(64 << 20))
