# SPDX-License-Identifier: Apache-2.0
"""Answers of a given form: a grammar says at each step which tokens may come next (llguidance)."""

import asyncio
import hashlib
import importlib.util
import json
import logging
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from slmserve.backend import EngineInfo
from slmserve.errors import ApiError, invalid, overloaded
from slmserve.journal import describe_exception
from slmserve.tokenizer import TextCodec

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_log = logging.getLogger(__name__)
_LIBRARY: Final = "llguidance"
_MOST_CHARACTERS: Final = 64 << 10
_MOST_KEPT: Final = 32
_MOST_WAITING: Final = 8
"""Requests whose grammar is being compiled: each may take seconds."""
_TOO_COMPLEX: Final = "too complex"
_CPU_SECONDS: Final = 4
"""Of one check in another process."""
_WALL_SECONDS: Final = 4.0 * _CPU_SECONDS
_RISKY: Final = re.compile(
    r'"(pattern|patternProperties|propertyNames|format|multipleOf|allOf|anyOf|oneOf|not|if|\$ref|\$dynamicRef'
    r'|minLength|maxLength|minItems|maxItems)"\s*:'
)
"""What makes the compiler multiply branches or intersect regular expressions, for minutes at worst."""
_PLACE: Final = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
_OPTIONS: Final = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}
"""White space between tokens of JSON has an end: small models can write it for ever."""


def is_installed() -> bool:
    """Whether this image can constrain answers; does not import the library."""
    return importlib.util.find_spec(_LIBRARY) is not None


def build_limits() -> "LLParserLimits":
    """Bounds on the work of one compilation and of one step."""
    from llguidance import LLParserLimits

    return LLParserLimits(precompute_large_lexemes=False, max_grammar_size=200_000, verbose_errors=False)


def find_fault(grammar: str, limits: "LLParserLimits") -> str:
    """What is wrong with a grammar, empty when nothing is."""
    from llguidance import LLMatcher

    _, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
    faults = [message for message in messages if not message.startswith("WARNING")]
    return faults[0] if faults else ""


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of JSON of `schema` and nothing else."""
    return f"start: answer\nanswer: {json_rule(schema)}\n"


def json_rule(schema: Mapping[str, Any]) -> str:
    """A grammar's rule body for JSON of `schema`, with its own root for references."""
    return "%json " + json.dumps({**schema, "x-guidance": _OPTIONS})


class GrammarConstraint:
    """A `generation.Constraint`; belongs to one generation, on the engine's thread."""

    __slots__ = ("_end_mask", "_matcher", "_width", "failed")

    def __init__(self, matcher: "LLMatcher", end_mask: NDArray[np.bool_]) -> None:
        self._matcher = matcher
        self._end_mask = end_mask
        self._width = len(end_mask)
        self.failed = False
        """The grammar became too complex on the way; the answer ended and is not of its form."""

    def allowed(self) -> NDArray[np.bool_]:
        """Mask [vocab]; end tokens only once the answer is whole."""
        if not self.failed:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            mask = np.unpackbits(bits, count=self._width, bitorder="little").view(np.bool_)
            self.failed = self._matcher.is_error()
            if not self.failed:
                return mask
        return self._end_mask

    def accept(self, token: int) -> None:
        """`token` was chosen."""
        if not self.failed and not self._matcher.consume_token(token):
            self.failed = True


class GrammarCompiler:
    """Compiles grammars for one model; for the event loop only, the work is done elsewhere."""

    def __init__(self, codec: TextCodec, engine: EngineInfo, end_tokens: frozenset[int]) -> None:
        self._codec = codec
        self._vocab_size = engine.vocab_size
        self._end_tokens = sorted(end_tokens)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._checking = asyncio.Semaphore(1)
        self._tokenizer: LLTokenizer | None = None
        self._waiting = 0
        self._compiled: OrderedDict[bytes, LLMatcher] = OrderedDict()
        self._refused: OrderedDict[bytes, str] = OrderedDict()

    async def compile(self, grammar: str, *, param: str) -> GrammarConstraint:
        """A fresh constraint for a Lark grammar; raises ApiError 400 that names `param` and says why.

        Raises ApiError 429 when too many are being compiled.
        """
        if not is_installed():
            raise invalid(
                f"'{param}' needs {_LIBRARY}, which this image lacks; use the standard image",
                param=param,
                code="unsupported_parameter",
            )
        if not self._end_tokens:
            raise invalid(
                f"'{param}' needs a model that names its end token; add eos_token_id to its files",
                param=param,
                code="unsupported_parameter",
            )
        if len(grammar) > _MOST_CHARACTERS:
            raise invalid(f"'{param}' is larger than {_MOST_CHARACTERS} characters; shorten it", param=param)
        # A digest and not the text: what clients send is not kept longer than it has to be.
        key = hashlib.sha256(grammar.encode("utf-8", "surrogatepass")).digest()
        if key in self._refused:
            raise _refuse(self._refused[key], param)
        if key not in self._compiled:
            try:
                fault = await self._add(key, grammar)
            except ApiError:
                raise
            except Exception as error:
                _log.error("a grammar cannot be compiled: %s", describe_exception(error))
                raise invalid(
                    f"'{param}' is not supported with this model's tokenizer; remove it",
                    param=param,
                    code="unsupported_parameter",
                ) from None
            if fault:
                _keep(self._refused, key, fault)
                raise _refuse(fault, param)
        self._compiled.move_to_end(key)
        end_mask = np.zeros(self._width, np.bool_)
        end_mask[self._end_tokens] = True
        return GrammarConstraint(self._compiled[key].deep_copy(), end_mask)

    @property
    def _width(self) -> int:
        # The logits of some models are padded beyond the vocabulary, those of others fall short of it.
        return max(self._vocab_size, *(token + 1 for token in self._end_tokens))

    def _compile(self, grammar: str) -> "LLMatcher":
        from llguidance import LLMatcher, LLTokenizer

        if self._tokenizer is None:
            text = self._codec.to_json()
            width = max(self._width, self._codec.size)
            self._tokenizer = LLTokenizer(text, n_vocab=width, eos_token=self._end_tokens)
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=build_limits())

    async def _add(self, key: bytes, grammar: str) -> str:
        """Compile and keep; returns what is wrong, empty when nothing is. Raises ApiError 429."""
        if self._waiting >= _MOST_WAITING:
            raise overloaded(retry_seconds=_CPU_SECONDS)
        self._waiting += 1
        try:
            if _RISKY.search(grammar):
                async with self._checking:
                    fault = await _try_elsewhere(grammar)
                if fault:
                    return fault
            loop = asyncio.get_running_loop()
            matcher = await loop.run_in_executor(self._thread, self._compile, grammar)
        finally:
            self._waiting -= 1
        if matcher.is_error():
            return matcher.get_error() or _TOO_COMPLEX
        _keep(self._compiled, key, matcher)
        return ""


_Kept = TypeVar("_Kept")


def _keep(kept: OrderedDict[bytes, _Kept], key: bytes, value: _Kept) -> None:
    kept[key] = value
    while len(kept) > _MOST_KEPT:
        kept.popitem(last=False)


async def _try_elsewhere(grammar: str) -> str:
    """Compile in a process that can be ended; returns what is wrong, empty when nothing is.

    Raises ApiError 429 when there is no time or no process for it now.
    """
    try:
        child = await _start_check()
    except OSError as error:
        _log.error("no process to check a grammar: %s", describe_exception(error))
        raise overloaded(retry_seconds=_CPU_SECONDS) from None
    try:
        async with asyncio.timeout(_WALL_SECONDS):
            fault, _ = await child.communicate(grammar.encode("utf-8", "replace"))
    except TimeoutError:
        # Its CPU time is bounded: the device is too busy, which says nothing about the grammar.
        raise overloaded(retry_seconds=_CPU_SECONDS) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return fault.decode("utf-8", "replace") if child.returncode == 0 else _TOO_COMPLEX


async def _start_check() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "slmserve.grammar_check",
        str(_CPU_SECONDS),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


def _refuse(fault: str, param: str) -> ApiError:
    if fault == _TOO_COMPLEX or fault.startswith("panic"):
        return invalid(
            f"'{param}' is too complex to compile; use fewer patterns, and none of them inside allOf",
            param=param,
            code="schema_too_complex",
        )
    # Only what is wrong: the place is one of the grammar that we wrote around the schema.
    plain = " ".join(fault.replace("<non-verbose/>", "").partition("\n1 |")[0].split())
    text = _PLACE.sub("", plain.partition(" 1 | start")[0])[:300]
    return invalid(
        f"'{param}' has a schema that cannot be followed: {text}", param=param, code="invalid_schema"
    )
