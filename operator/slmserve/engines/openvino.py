# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI over an OpenVINO IR: fast prompts on x86, with the library's own scheduler.

The directory holds openvino_model.xml and .bin (a stateful decoder, as optimum-cli and
openvino_genai export it), config.json, and our tokenizer.json. The library's tokenizers are not used.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from slmserve.backend import Backend, Capability, Deliver, EngineInfo, LoadedEngine
from slmserve.defaults import load_defaults
from slmserve.engines.loading import choose_threads
from slmserve.engines.memory import memory_limit_bytes
from slmserve.engines.openvino_backend import OpenVinoBackend
from slmserve.engines.openvino_library import openvino, openvino_genai
from slmserve.engines.registry import EngineOptions
from slmserve.engines.vocabulary import read_vocabulary
from slmserve.errors import StartError
from slmserve.tokenizer import TOKENIZER_FILE
from slmwire.reasons import Reason

NAME: Final = "openvino"
MODEL_FILE: Final = "openvino_model.xml"
WEIGHTS_FILE: Final = "openvino_model.bin"
CONFIG_FILE: Final = "config.json"
_BLOCK_TOKENS: Final = 32
"""Of the attention cache on a CPU."""
_MOST_STEPS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What config.json says."""

    context_length: int
    vocab_size: int
    end_tokens: frozenset[int]


def _unfit(message: str) -> StartError:
    return StartError(Reason.UNFIT, message)


def load_config(model_dir: Path) -> ModelConfig:
    """Read config.json; raises StartError (Unfit) that names the field."""
    try:
        body = json.loads((model_dir / CONFIG_FILE).read_bytes())
        sizes = {name: int(body[name]) for name in ("max_position_embeddings", "vocab_size")}
        ends = body.get("eos_token_id")
        end_tokens = frozenset(
            int(one) for one in (ends if isinstance(ends, list) else [ends]) if one is not None
        )
    except OSError as error:
        raise _unfit(f"{CONFIG_FILE} cannot be read ({error.strerror}); export the model again") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unfit(f"{CONFIG_FILE} lacks or misstates {error}; export the model again") from error
    for name, value in sizes.items():
        if not 0 < value < 1 << 31:
            raise _unfit(f"{CONFIG_FILE}: {name} is {value}; export the model again")
    return ModelConfig(
        context_length=sizes["max_position_embeddings"],
        vocab_size=sizes["vocab_size"],
        end_tokens=end_tokens,
    )


def load(model_dir: Path, options: EngineOptions) -> LoadedEngine:
    """See `registry.EngineModule`."""
    config = load_config(model_dir)
    defaults = load_defaults(model_dir, config.end_tokens)
    max_length = min(options.context_length or config.context_length, config.context_length)
    _check_vocabulary(model_dir, config)
    pipeline = open_pipeline(model_dir, options, max_length=max_length)
    cache_bytes = _generate_one(pipeline, end=min(defaults.end_tokens))
    info = EngineInfo(
        name=NAME,
        version=openvino_genai.__version__,
        slots=options.slots,
        max_length=max_length,
        vocab_size=config.vocab_size,
        cache_bytes=cache_bytes,
        capabilities=frozenset({Capability.SEED}),
    )

    def build_backend(max_queue: int, deliver: Deliver) -> Backend:
        return OpenVinoBackend(
            pipeline, slots=options.slots, max_length=max_length, max_queue=max_queue, deliver=deliver
        )

    return LoadedEngine(info=info, defaults=defaults, build_backend=build_backend)


def _check_vocabulary(model_dir: Path, config: ModelConfig) -> None:
    """Tokenizer, config.json and graph must agree: an id beyond the graph's table reads foreign memory."""
    highest = max(read_vocabulary(model_dir))
    if highest >= config.vocab_size:
        raise _unfit(
            f"{TOKENIZER_FILE} goes up to token {highest} and {CONFIG_FILE} has vocab_size "
            f"{config.vocab_size}; put the tokenizer beside it that the model was trained with"
        )
    try:
        graph = openvino.Core().read_model(model_dir / MODEL_FILE)
        size = graph.output("logits").partial_shape[-1]
    except Exception as error:
        raise _unfit(f"{MODEL_FILE} cannot be read: {_brief(error)}; export the model again") from error
    if size.is_static and size.get_length() != config.vocab_size:
        raise _unfit(
            f"{MODEL_FILE} gives {size.get_length()} logits and {CONFIG_FILE} has vocab_size "
            f"{config.vocab_size}; export the model again"
        )


def open_pipeline(model_dir: Path, options: EngineOptions, *, max_length: int) -> Any:
    """A pipeline with a cache for all slots; raises StartError with reason and cure."""
    weights = model_dir / WEIGHTS_FILE
    size = weights.stat().st_size if weights.is_file() else 0
    if not size:
        raise _unfit(f"{WEIGHTS_FILE} is missing or empty; export the model again")
    if size > memory_limit_bytes():
        raise StartError(
            Reason.INSUFFICIENT_CAPACITY,
            f"{size >> 20} MiB of weights do not fit in {memory_limit_bytes() >> 20} MiB; use a smaller file",
        )
    threads = choose_threads(options.threads, model_bytes=size)
    scheduling = openvino_genai.SchedulerConfig()
    scheduling.max_num_seqs = options.slots
    # One block to spare per slot: an answer may end one token beyond its last full block.
    scheduling.num_kv_blocks = options.slots * (-(-max_length // _BLOCK_TOKENS) + 1)
    # With it some answers are wrong: of 17,000 greedy ones beside others, many of which were cancelled,
    # nine were not the model's, by up to 1.2 in the logits; without it none.
    scheduling.enable_prefix_caching = False
    try:
        return openvino_genai.ContinuousBatchingPipeline(
            model_dir, scheduling, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
    except MemoryError as error:
        what = f"{options.slots} slots of {max_length} tokens"
        message = f"not enough memory for {what}; lower slots or context length"
        raise StartError(Reason.INSUFFICIENT_CAPACITY, message) from error
    except Exception as error:
        raise _unfit(f"OpenVINO cannot load the model: {_brief(error)}; export it again") from error


def _generate_one(pipeline: Any, *, end: int) -> int:
    """Generate two tokens; gives the bytes of the attention cache. Raises StartError."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.eos_token_id, config.stop_token_ids = 2, end, {end}
    config.ignore_eos = True
    try:
        handle = pipeline.add_request(0, openvino.Tensor(np.arange(4, dtype=np.int64)[None].copy()), config)
        for _ in range(_MOST_STEPS):
            if not pipeline.has_non_finished_requests():
                break
            pipeline.step()
        tokens = [token for output in handle.read_all() for token in output.generated_ids]
    except MemoryError as error:
        raise StartError(Reason.INSUFFICIENT_CAPACITY, "not enough memory to generate a token") from error
    except Exception as error:
        raise _unfit(f"the model loads and cannot generate a token: {_brief(error)}") from error
    if not tokens:
        raise _unfit("the model loads and generates no token; export it again")
    return int(pipeline.get_metrics().kv_cache_size_in_bytes)


def _brief(error: Exception) -> str:
    """The last lines say what failed; the first ones name files of the library's build machine."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("Exception from", "Check "))]
    return " ".join(kept or lines)[:400]
