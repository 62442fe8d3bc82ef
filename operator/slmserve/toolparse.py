# SPDX-License-Identifier: Apache-2.0
"""Tool calls in an answer's text, told from its content as it comes."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from slmserve.stops import count_overlap
from slmserve.tools import CLOSE, PYTHON_TAG, ToolForm, call_identifier

_HEADER: Final = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?(?:"id"\s*:\s*"[^"]*"\s*,\s*)?"name"\s*:\s*"([^"\\]+)"\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_NAMED: Final = re.compile(r"([\w.-]{1,64})(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
_NAME_BEGUN: Final = re.compile(r"[\w.-]{0,64}(\[[A-Z_]*(\]\w*)?)*\s*")
_FIRST_KEYS: Final = ('"name"', '"type"', '"id"')
_MOST_HEADER: Final = 512
"""A call whose name does not show within so many characters is no call."""
_BETWEEN: Final = " \n\r\t[,;"
"""What stands between calls and is no content."""
_AFTER: Final = re.compile(r"[\s,;]*\]?\s*")
"""What stands behind the last call and is no content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPart:
    """Part of the call number `index`: its first part has the id and the name."""

    index: int
    arguments: str
    identifier: str = ""
    name: str = ""

    def to_delta(self) -> dict[str, Any]:
        """The API's form in a stream; the first part also has id, type and name."""
        if not self.name:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.index, "id": self.identifier, "type": "function", "function": function}


@dataclass(slots=True)
class CallCollector:
    """Puts the parts of calls together again."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def add(self, part: CallPart) -> None:
        """Take the next part."""
        if part.name:
            function = {"name": part.name, "arguments": part.arguments}
            self.calls.append({"id": part.identifier, "type": "function", "function": function})
        else:
            self.calls[-1]["function"]["arguments"] += part.arguments


class _Json:
    """Follows one JSON object, `depth` brackets open already, through pieces of text; says where it ends."""

    __slots__ = ("_depth", "_escaped", "_quoted")

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = self._escaped = False

    def end(self, text: str) -> int | None:
        """Index behind the object's last brace in `text`, None while it goes on."""
        for index, character in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    return index + 1
        return None


class _State(StrEnum):
    TEXT = "text"
    """Before a call, or where there is none."""
    HEAD = "head"
    """Where a call's name is expected."""
    ARGUMENTS = "arguments"
    TAIL = "tail"
    """Behind the arguments, up to what closes the call."""


class ToolParser:
    """Splits an answer into content and calls as it comes; what is no call is content."""

    def __init__(self, form: ToolForm) -> None:
        self._form = form
        self._state = _State.HEAD if form is ToolForm.LLAMA else _State.TEXT
        self._held = ""
        self._raw = ""
        """Text since the call's opening, to give back when it is none."""
        self._json = _Json()
        self._enclosed = self._inside = False
        """Whether the arguments stand in an object that is not closed yet; whether more of it has come."""
        self._says = False
        """Whether there was content since the last call."""
        self.calls = 0

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        """Content and parts of calls that `text` makes certain."""
        self._held += text
        content: list[str] = []
        parts: list[CallPart] = []
        while self._held and self._step(content, parts):
            pass
        return "".join(content), parts

    def flush(self) -> str:
        """What was held back at the end and is no call."""
        held, self._held = self._held, ""
        content: list[str] = []
        if self._state is _State.HEAD:
            self._give_back(content, held)
        elif self._state is _State.TEXT:
            self._put(content, held)
        return "".join(content)

    def _give_back(self, content: list[str], held: str) -> None:
        """What looked like a call's head is text."""
        if self._raw:
            self._put(content, self._raw + held)
        else:
            self._put(content, _AFTER.sub("", held, count=1) if self.calls else held)
        self._raw = ""

    def _step(self, content: list[str], parts: list[CallPart]) -> bool:
        """One transition; returns whether there may be another one now."""
        if self._state is _State.TEXT:
            return self._in_text(content)
        if self._state is _State.HEAD:
            return self._in_head(content, parts)
        if self._state is _State.ARGUMENTS:
            return self._in_arguments(parts)
        return self._in_tail()

    def _in_text(self, content: list[str]) -> bool:
        opening = self._form.opening
        at = self._held.find(opening) if opening else -1
        if at < 0:
            keep = count_overlap(self._held, opening)
            cut = len(self._held) - keep
            self._put(content, self._held[:cut])
            self._held = self._held[cut:]
            return False
        self._put(content, self._held[:at])
        self._held, self._raw = self._held[at + len(opening) :], opening
        self._state = _State.HEAD
        return True

    def _put(self, content: list[str], text: str) -> None:
        if self.calls and not self._says:
            # Nobody wrote the white space behind a call as content.
            text = text.lstrip()
        if text:
            content.append(text)
            self._says = True

    def _in_head(self, content: list[str], parts: list[CallPart]) -> bool:
        text = self._held.lstrip(_BETWEEN if self.calls or self._raw else None)
        if self._form is ToolForm.LLAMA:
            text = text.removeprefix(PYTHON_TAG).lstrip()
        header = self._header().match(text)
        if header and header.end() <= _MOST_HEADER:
            identifier = call_identifier(self._form)
            parts.append(CallPart(index=self.calls, identifier=identifier, name=header[1], arguments=""))
            self.calls += 1
            self._held, self._raw, self._json = text[header.end() :], "", _Json()
            self._state, self._says = _State.ARGUMENTS, False
            return True
        if self._may_become_call(text):
            return False
        if self._raw:
            # Only the opening: another one may follow.
            self._give_back(content, "")
        else:
            self._held = _AFTER.sub("", self._held, count=1) if self.calls else self._held
        self._state = _State.TEXT
        return True

    def _header(self) -> re.Pattern[str]:
        return _NAMED if self._form is ToolForm.MISTRAL_ARGS else _HEADER

    def _may_become_call(self, text: str) -> bool:
        if len(text) > _MOST_HEADER:
            return False
        if self._form is ToolForm.MISTRAL_ARGS:
            return _NAME_BEGUN.fullmatch(text) is not None
        if self._form is ToolForm.LLAMA and PYTHON_TAG.startswith(text):
            return True
        if text[:1] != "{":
            return not text
        key = text[1:].lstrip()
        return any(known.startswith(key[: len(known)]) for known in _FIRST_KEYS)

    def _in_arguments(self, parts: list[CallPart]) -> bool:
        end = self._json.end(self._held)
        text = self._held if end is None else self._held[:end]
        parts.append(CallPart(index=self.calls - 1, arguments=text))
        self._held = self._held[len(text) :]
        if end is None:
            return False
        self._json, self._inside = _Json(depth=1), False
        self._enclosed = self._form is not ToolForm.MISTRAL_ARGS
        self._state = _State.TAIL
        return True

    def _in_tail(self) -> bool:
        """Skip what closes the call; then another one, or text."""
        if self._enclosed and not self._skip_object():
            return False
        if self._form is ToolForm.HERMES:
            self._held = self._held.lstrip()
            if len(self._held) < len(CLOSE) and CLOSE.startswith(self._held):
                return False
            self._held = self._held.removeprefix(CLOSE)
        opens_again = self._form in (ToolForm.HERMES, ToolForm.MISTRAL_ARGS)
        self._state = _State.TEXT if opens_again else _State.HEAD
        return True

    def _skip_object(self) -> bool:
        """Skip the rest of the object around the arguments; returns whether it has ended."""
        if not self._inside:
            self._held = self._held.lstrip()
            if not self._held:
                return False
            if self._held[0] not in ",}":
                # Small models forget the brace: what follows is not part of the call.
                self._enclosed = False
                return True
            self._inside = True
        end = self._json.end(self._held)
        self._held = "" if end is None else self._held[end:]
        self._enclosed = end is None
        return end is not None
