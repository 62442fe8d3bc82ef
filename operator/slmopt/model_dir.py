# SPDX-License-Identifier: Apache-2.0
"""Complete model directories: what is carried from one to the next, and their slm-manifest.json."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from slmopt.errors import unfit
from slmwire.manifest import Manifest, ManifestError, parse_manifest
from slmwire.paths import MODEL_MANIFEST_FILE

GENAI_CONFIG: Final = "genai_config.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
SIGNATURE_FILE: Final = "model.sig"
_STALE: Final = frozenset({MODEL_MANIFEST_FILE, SIGNATURE_FILE})
"""Say something about the bytes of the directory that they came in; a new one is written."""
_BLOCK_BYTES: Final = 1 << 20


def list_files(directory: Path) -> list[str]:
    """Paths of the regular files below `directory`, relative, with `/`, sorted; hidden ones left out."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(p.startswith(".") for p in path.parts))


def hash_file(path: Path) -> str:
    """Lower-case hexadecimal sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def build_manifest(directory: Path) -> Manifest:
    """The manifest of the files there, slm-manifest.json left out; raises OptimizeError (Unfit)."""
    rows = [
        {"path": path, "size": (directory / path).stat().st_size, "sha256": hash_file(directory / path)}
        for path in list_files(directory)
        if path != MODEL_MANIFEST_FILE
    ]
    try:
        return parse_manifest(json.dumps({"files": rows}))
    except ManifestError as error:
        raise unfit(f"{error}; rename the file, or take it out") from error


def write_manifest(directory: Path) -> Manifest:
    """Write slm-manifest.json for the files there."""
    manifest = build_manifest(directory)
    (directory / MODEL_MANIFEST_FILE).write_text(manifest.to_json())
    return manifest


def carry_files(source: Path, target: Path, *, without: Collection[str]) -> None:
    """Copy every file of `source` but for those named and for what speaks of the old bytes."""
    for path in list_files(source):
        if path in _STALE or path in without:
            continue
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)


def _scratch_prefix(target: Path) -> str:
    """No name of a model has a ~, so this is nobody else's: `v1-int4` is beside `v1-int4-small`."""
    return f".{target.name}~"


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `target` at the end of the block, or vanishes after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(target), dir=target.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        sync_tree(scratch)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_scratch(target: Path) -> None:
    """Remove what a killed `new_directory(target)` has left, where one process at a time works."""
    for left in target.parent.glob(f"{_scratch_prefix(target)}*"):
        shutil.rmtree(left, ignore_errors=True)


def sync_tree(directory: Path) -> None:
    """fsync all files and folders below `directory`, itself included."""
    for path in [*directory.rglob("*"), directory]:
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """fsync one folder or file; some network file systems cannot, which is let pass."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """An object from a JSON file of the model; raises OptimizeError (Unfit)."""
    try:
        body = json.loads((directory / name).read_bytes())
    except OSError as error:
        raise unfit(f"{name} cannot be read ({error.strerror}); the model directory must have it") from error
    except (ValueError, RecursionError) as error:
        raise unfit(f"{name} is not JSON; export the model again") from error
    if not isinstance(body, dict):
        raise unfit(f"{name} must be an object; export the model again")
    return body


def update_json(directory: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON object in place."""
    body = read_json(directory, name)
    change(body)
    (directory / name).write_text(json.dumps(body, indent=4))


def check_complete(directory: Path) -> None:
    """Raises OptimizeError (Unfit) when the tokenizer or the chat template is missing.

    Every engine of the server uses them, whatever the model's format.
    """
    if not (directory / TOKENIZER).is_file():
        raise unfit(
            f"the source has no {TOKENIZER}; add it (transformers: AutoTokenizer.from_pretrained(...)."
            "save_pretrained(...))"
        )
    if (directory / CHAT_TEMPLATE).is_file():
        return
    config = read_json(directory, TOKENIZER_CONFIG) if (directory / TOKENIZER_CONFIG).is_file() else {}
    if not config.get("chat_template"):
        raise unfit(
            f"the source has no chat template; put it into {TOKENIZER_CONFIG} as chat_template, or into "
            f"{CHAT_TEMPLATE}"
        )


def describe_format(directory: Path) -> str:
    """`onnx`, `gguf`, `litert`, `openvino`, `huggingface` or `unknown`."""
    if (directory / GENAI_CONFIG).is_file():
        return "onnx"
    for name, pattern in (
        ("gguf", "*.gguf"),
        ("litert", "*.tflite"),
        ("litert", "*.litertlm"),
        ("openvino", "openvino_model.xml"),
        ("huggingface", "*.safetensors"),
    ):
        if any(directory.glob(pattern)):
            return name
    return "unknown"
