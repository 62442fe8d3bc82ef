# SPDX-License-Identifier: Apache-2.0
"""How much memory a variant needs, where it comes from, and what its pod asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from slmops.api import SLMDeploymentSpec
from slmops.api.base import quantity_value
from slmops.api.spec import Variant
from slmops.api.variant import AUTO
from slmops.model.observed import Resolved
from slmops.planning.effective import EffectiveVariant
from slmwire.manifest import Manifest

DEFAULT_REQUEST_BYTES: Final = 256 << 20
"""What a pod asks for at least while nobody knows how large the cache becomes."""
ASSUMED_CONTEXT: Final = 2048
"""Tokens per slot that are counted where contextLength is 0: the model's own limit is often 32,768, and a
cache takes memory only as far as requests have filled it."""
_MIB: Final = 1 << 20

# Resident memory of the process less files and cache, with 320 tokens of one stream on a model of half a
# billion parameters in int4 (x86-64, 2 threads). It holds the interpreter, libraries, working buffers, and
# where an engine packs weights anew, that copy. onnxruntime is that of our own slots, without genai, which
# takes 280 MiB.
OVERHEAD_BYTES: Final[Mapping[str, int]] = {
    "onnxruntime": 160 * _MIB,
    "encoder": 160 * _MIB,
    "litert": 300 * _MIB,
    "llama.cpp": 385 * _MIB,
    "executorch": 420 * _MIB,
    "openvino": 520 * _MIB,
}
_CACHE_ELEMENT_BYTES: Final[Mapping[str, int]] = {"llama.cpp": 2, "openvino": 2}
"""Bytes of one number in the cache where it is not the 4 of a float32: these keep float16 or less."""
_WEIGHTS: Final = (
    ".onnx", ".data", ".onnx_data", ".gguf", ".bin", ".tflite", ".litertlm", ".pte", ".onnx_adapter"
)  # fmt: skip
_ENGINE_FILES: Final = (
    # In this order: an export of genai has a model.onnx, too.
    ("openvino", "openvino_model.xml"),
    ("onnxruntime", "genai_config.json"),
)
_ENGINE_SUFFIXES: Final = (
    ("llama.cpp", ".gguf"), ("litert", ".tflite"), ("litert", ".litertlm"), ("executorch", ".pte"),
    ("encoder", ".onnx"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Memory that a variant needs, in bytes."""

    weights_bytes: int
    cache_bytes: int | None
    """None where nobody knows; it then counts for nothing."""
    overhead_bytes: int
    given_bytes: int | None = None
    """The memory request of the spec, which counts instead of the sum."""

    @property
    def total_bytes(self) -> int:
        """What is reserved."""
        if self.given_bytes is not None:
            return self.given_bytes
        total = self.weights_bytes + (self.cache_bytes or 0) + self.overhead_bytes
        return max(total, DEFAULT_REQUEST_BYTES) if self.cache_bytes is None else total

    def describe(self) -> str:
        """`1234 MiB (weights 900, cache 174, engine 160)`."""
        total = mib_text(self.total_bytes)
        if self.given_bytes is not None:
            return f"{total} (the request in spec)"
        cache = "unknown" if self.cache_bytes is None else f"{_mib(self.cache_bytes)}"
        return (
            f"{total} (weights {_mib(self.weights_bytes)}, cache {cache}, engine {_mib(self.overhead_bytes)})"
        )

    def to_body(self) -> dict[str, int]:
        """Inverse of `read_need`."""
        cache = {} if self.cache_bytes is None else {"cache": self.cache_bytes}
        return {"weights": self.weights_bytes, "overhead": self.overhead_bytes} | cache


def read_need(body: Mapping[str, Any] | None) -> Need | None:
    """What `to_body` gave."""
    if body is None:
        return None
    cache = body.get("cache")
    return Need(
        weights_bytes=int(body["weights"]),
        cache_bytes=None if cache is None else int(cache),
        overhead_bytes=int(body["overhead"]),
    )


def mib_text(size_bytes: int) -> str:
    """`1234 MiB`, rounded up."""
    return f"{_mib(size_bytes)} MiB"


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // _MIB)


def assess_need(spec: SLMDeploymentSpec, variant: Variant, found: Resolved | None) -> Need | None:
    """The need of a variant of an effective spec; None while neither files nor a request are known."""
    request = variant.resources.requests.memory
    given = int(quantity_value(request)) if request is not None else None
    measured = variant.measured if isinstance(variant, EffectiveVariant) else None
    weights = _weights(variant, found, measured.size_bytes if measured is not None else 0)
    if weights is None:
        return None if given is None else Need(
            weights_bytes=0, cache_bytes=None, overhead_bytes=0, given_bytes=given
        )  # fmt: skip
    engine = engine_for(spec, variant, found)
    overhead = OVERHEAD_BYTES.get(engine, OVERHEAD_BYTES["onnxruntime"])
    if measured is not None and measured.memory_bytes is not None:
        overhead = max(0, measured.memory_bytes - weights)
    hints = variant.memory
    if hints is not None and hints.overhead is not None:
        overhead = int(quantity_value(hints.overhead))
    return Need(
        weights_bytes=weights,
        cache_bytes=_cache(spec, variant, found, engine),
        overhead_bytes=overhead,
        given_bytes=given,
    )


def engine_for(spec: SLMDeploymentSpec, variant: Variant, found: Resolved | None) -> str:
    """The engine that the need is computed for: as told, else what the files are for."""
    told = variant.engine or spec.runtime.engine or ""
    if told not in ("", AUTO):
        return told
    return (engine_of_files(found.manifest) if found is not None else "") or "onnxruntime"


def engine_of_files(manifest: Manifest) -> str:
    """The engine that the files of a model are for; empty when they do not tell."""
    # Adapters may be for another engine than the model; they do not tell.
    paths = [file.path for file in manifest.files if not file.path.startswith("adapters/")]
    names = [path.rpartition("/")[2] for path in paths]
    for engine, name in _ENGINE_FILES:
        if name in names:
            return engine
    for engine, suffix in _ENGINE_SUFFIXES:
        if any(name.endswith(suffix) for name in names):
            # model.onnx alone is what onnxruntime takes, too: only a configuration of transformers tells.
            return engine if engine != "encoder" or "config.json" in names else ""
    return ""


def _weights(variant: Variant, found: Resolved | None, measured_bytes: int) -> int | None:
    if variant.memory is not None and variant.memory.weights is not None:
        return int(quantity_value(variant.memory.weights))
    if found is None:
        return measured_bytes or None
    files = found.manifest.files
    return sum(f.size for f in files if f.path.endswith(_WEIGHTS)) or found.manifest.size_bytes


def _cache(spec: SLMDeploymentSpec, variant: Variant, found: Resolved | None, engine: str) -> int | None:
    if engine == "encoder":
        return 0
    geometry = found.geometry if found is not None else None
    measured = variant.measured if isinstance(variant, EffectiveVariant) else None
    per_token: int | None = None
    if variant.memory is not None and variant.memory.cache_per_token is not None:
        per_token = int(quantity_value(variant.memory.cache_per_token))
    elif measured is not None and measured.cache_bytes_per_token is not None:
        per_token = measured.cache_bytes_per_token
    elif geometry is not None:
        per_token = geometry.cache_elements * _CACHE_ELEMENT_BYTES.get(engine, 4)
    if per_token is None:
        return None
    runtime = variant.runtime
    slots = spec.runtime.slots if runtime is None or runtime.slots is None else runtime.slots
    context = runtime.context_length if runtime is not None else None
    context = spec.runtime.context_length if context is None else context
    limit = geometry.context_length if geometry is not None else context or ASSUMED_CONTEXT
    # Our own scheduler keeps a beginning that many prompts share in a spare row.
    rows = slots + 1 if engine == "onnxruntime" and slots > 1 else slots
    return per_token * rows * min(context or ASSUMED_CONTEXT, limit)


def assess_needs(spec: SLMDeploymentSpec, resolved: Mapping[str, Resolved]) -> dict[str, Need]:
    """By variant, as far as they are known; `resolved` by variant."""
    found = {v.name: assess_need(spec, v, resolved.get(v.name)) for v in spec.variants}
    return {name: need for name, need in found.items() if need is not None}


def with_requests(spec: SLMDeploymentSpec, needs: Mapping[str, Need]) -> SLMDeploymentSpec:
    """The spec with a memory request for each variant, which is never above its limit."""

    def filled(variant: Variant) -> Variant:
        if variant.resources.requests.memory is not None:
            return variant
        need = needs.get(variant.name)
        size = need.total_bytes if need is not None else DEFAULT_REQUEST_BYTES
        limit = variant.resources.limits.memory
        text = f"{_mib(size)}Mi"
        if limit is not None and quantity_value(limit) < quantity_value(text):
            text = limit
        requests = variant.resources.requests.model_copy(update={"memory": text})
        resources = variant.resources.model_copy(update={"requests": requests})
        return variant.model_copy(update={"resources": resources})

    variants = [filled(variant) for variant in spec.variants]
    same = all(new is old for new, old in zip(variants, spec.variants, strict=True))
    return spec if same else spec.model_copy(update={"variants": variants})
