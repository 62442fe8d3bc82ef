# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through ctypes: the C symbols inside the extension module of the package `xllamacpp`.

The package's own Python interface has a whole server and no single decode step. Its parameter
structs are passed by value and change from release to release, so one exact version is pinned, and
`open_library` compares the defaults that the library gives with those that the structs below expect.
"""

import ctypes as c
import importlib.metadata
import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from slmserve.errors import StartError
from slmwire.reasons import Reason

PACKAGE: Final = "xllamacpp"
PINNED_VERSION: Final = "2026.10.11549"
LOAD_MODE_NONE: Final = 0
LOAD_MODE_MMAP: Final = 1
TYPE_F16: Final = 1
_WARNING: Final = 3
"""Of ggml_log_level; errors and the continuation of a line are above it."""
_MOST_LINES: Final = 200


class ModelParams(c.Structure):
    """llama_model_params."""

    _fields_ = (
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
    )
    expected: ClassVar[dict[str, Any]] = {
        "n_gpu_layers": -1,
        "split_mode": 1,
        "load_mode": -1,
        "lazy_mode": 1,
        "use_extra_bufts": True,
    }
    """Defaults that are not zero."""


class ContextParams(c.Structure):
    """llama_context_params."""

    _fields_ = (
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int),
        ("rope_scaling_type", c.c_int),
        ("pooling_type", c.c_int),
        ("attention_type", c.c_int),
        ("flash_attn_type", c.c_int),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("moe_cache_size", c.c_size_t),
        ("abort_callback", c.c_void_p),
        ("abort_callback_data", c.c_void_p),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    )
    expected: ClassVar[dict[str, Any]] = {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "n_outputs_max_per_seq": 1,
        "n_threads": 4,
        "n_threads_batch": 4,
        "rope_scaling_type": -1,
        "pooling_type": -1,
        "attention_type": -1,
        "flash_attn_type": -1,
        "yarn_ext_factor": -1.0,
        "yarn_attn_factor": -1.0,
        "yarn_beta_fast": -1.0,
        "yarn_beta_slow": -1.0,
        "defrag_thold": -1.0,
        "type_k": TYPE_F16,
        "type_v": TYPE_F16,
        "offload_kqv": True,
        "no_perf": True,
        "op_offload": True,
        "swa_full": True,
    }
    """Defaults that are not zero."""


class Batch(c.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.c_void_p),
        ("embd", c.c_void_p),
        ("pos", c.c_void_p),
        ("n_seq_id", c.c_void_p),
        ("seq_id", c.c_void_p),
        ("logits", c.c_void_p),
    )


_LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "llama_log_set": (None, (_LogCallback, c.c_void_p)),
    "llama_version": (c.c_char_p, ()),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (c.c_void_p, (c.c_char_p, ModelParams)),
    "llama_model_free": (None, (c.c_void_p,)),
    "llama_init_from_model": (c.c_void_p, (c.c_void_p, ContextParams)),
    "llama_free": (None, (c.c_void_p,)),
    "llama_get_memory": (c.c_void_p, (c.c_void_p,)),
    "llama_n_ctx_seq": (c.c_uint32, (c.c_void_p,)),
    "llama_model_n_ctx_train": (c.c_int32, (c.c_void_p,)),
    "llama_model_has_encoder": (c.c_bool, (c.c_void_p,)),
    "llama_model_has_decoder": (c.c_bool, (c.c_void_p,)),
    "llama_model_get_vocab": (c.c_void_p, (c.c_void_p,)),
    "llama_vocab_n_tokens": (c.c_int32, (c.c_void_p,)),
    "llama_vocab_get_text": (c.c_char_p, (c.c_void_p, c.c_int32)),
    "llama_vocab_is_eog": (c.c_bool, (c.c_void_p, c.c_int32)),
    "llama_decode": (c.c_int32, (c.c_void_p, Batch)),
    "llama_get_logits": (c.c_void_p, (c.c_void_p,)),
    "llama_memory_seq_rm": (c.c_bool, (c.c_void_p, c.c_int32, c.c_int32, c.c_int32)),
    "llama_memory_seq_cp": (None, (c.c_void_p, c.c_int32, c.c_int32, c.c_int32, c.c_int32)),
    "llama_adapter_lora_init": (c.c_void_p, (c.c_void_p, c.c_char_p)),
    "llama_set_adapters_lora": (c.c_int32, (c.c_void_p, c.c_void_p, c.c_size_t, c.c_void_p)),
}


class _Log:
    """Takes what the library logs; keeps warnings and errors of the thread that asks, drops the rest.

    While requests run nothing is kept: no part of a prompt can reach a log.
    """

    def __init__(self) -> None:
        self._kept = threading.local()
        self.callback = _LogCallback(self._take)

    def _take(self, level: int, text: bytes | None, _: Any) -> None:
        lines: list[str] | None = getattr(self._kept, "lines", None)
        if lines is not None and level >= _WARNING and text and len(lines) < _MOST_LINES:
            lines.append(text.decode(errors="replace"))

    @contextmanager
    def keep(self) -> Iterator[list[str]]:
        """Lines that this thread's calls log inside the block."""
        lines: list[str] = []
        self._kept.lines = lines
        try:
            yield lines
        finally:
            self._kept.lines = None


class Library:
    """The functions of llama.cpp as attributes, typed; `log` keeps what loading says."""

    def __init__(self, handle: Any) -> None:
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(handle, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.log = _Log()
        self.llama_log_set(self.log.callback, None)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def check_defaults(given: ModelParams | ContextParams) -> None:
    """Compare a struct of defaults with the expected ones; raises StartError at the first difference."""
    for field in given._fields_:
        name = field[0]
        value, wanted = getattr(given, name) or 0, given.expected.get(name, 0)
        if value != wanted:
            raise _unsuited(f"{type(given).__name__}.{name} is {value} and not {wanted}")


def _unsuited(found: str) -> StartError:
    return StartError(
        Reason.UNFIT,
        f"this server is made for {PACKAGE} {PINNED_VERSION}: {found}; use the image tag for llama.cpp",
    )


_opened: dict[str, Library] = {}
_SPINS: Final = "500"
_opening = threading.Lock()


def open_library() -> Library:
    """Load the library once per process and check it; raises StartError (Unfit)."""
    with _opening:
        if PACKAGE not in _opened:
            _opened[PACKAGE] = _open()
        return _opened[PACKAGE]


def _open() -> Library:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise _unsuited("the package is not installed")
    version = importlib.metadata.version(PACKAGE)
    if version != PINNED_VERSION:
        raise _unsuited(f"its version is {version}")
    # Read when the library is loaded. Between the parts of a step its threads wait for each other, mostly
    # some microseconds: with "passive" each wait is a sleep, and one stream is half as fast. Whoever spins
    # longer keeps the one that it waits for from running where others need the cores. On two, with one
    # stream and 0.5 B parameters: 500 turns give 100 tokens/s alone and 43 beside a busy process, 5,000 give
    # 100 and 17, and 100 give 70 and 54.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    # A failed assertion would start a debugger, where there is one.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    package = Path(spec.submodule_search_locations[0])
    threads = package.parent / "native" / "libgomp.so.1"
    try:
        if threads.is_file():
            # The image brings it, for bases that have none; the library then finds it loaded.
            c.CDLL(str(threads))
        handle = c.CDLL(str(package / f"{PACKAGE}.abi3.so"))
        library = Library(handle)
    except (OSError, AttributeError) as error:
        raise _unsuited(f"its library cannot be used ({error})") from error
    check_defaults(library.llama_model_default_params())
    check_defaults(library.llama_context_default_params())
    library.llama_backend_init()
    return library
