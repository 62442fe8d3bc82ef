# SPDX-License-Identifier: Apache-2.0
"""How models write tool calls: the forms that chat templates teach, and a grammar for each."""

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from slmserve.constraints import json_rule
from slmserve.parts import ToolFunction

_ALPHABET: Final = string.ascii_letters + string.digits
OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
_MISTRAL: Final = "[TOOL_CALLS]"
_ARGS: Final = "[ARGS]"
PYTHON_TAG: Final = "<|python_tag|>"


class ToolForm(StrEnum):
    """What a model's tool calls look like."""

    HERMES = "hermes"
    """`<tool_call>{"name", "arguments"}</tool_call>`, also Qwen's."""
    LLAMA = "llama"
    """The whole answer is `{"name", "parameters"}`, several apart by semicolons."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS][{"name", "arguments"}, ...]`, or `[TOOL_CALLS]name[ARGS]{...}` in newer models."""
    MISTRAL_ARGS = "mistral-args"

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that may be special tokens and have to show all the same."""
        return {
            ToolForm.HERMES: (OPEN, CLOSE),
            ToolForm.LLAMA: (PYTHON_TAG,),
            ToolForm.MISTRAL: (_MISTRAL,),
            ToolForm.MISTRAL_ARGS: (_MISTRAL, _ARGS),
        }[self]

    @property
    def opening(self) -> str:
        """What a call begins with; empty when it is told from its JSON."""
        return {ToolForm.HERMES: OPEN, ToolForm.LLAMA: ""}.get(self, _MISTRAL)


def find_form(template_source: str) -> ToolForm | None:
    """The form that a chat template teaches; None when it takes no tools."""
    if not re.search(r"\btools\b", template_source):
        return None
    if OPEN in template_source:
        return ToolForm.HERMES
    if _MISTRAL in template_source:
        return ToolForm.MISTRAL_ARGS if _ARGS in template_source else ToolForm.MISTRAL
    return ToolForm.LLAMA


def call_identifier(form: ToolForm) -> str:
    """An id for a call; Mistral's templates take exactly nine letters and digits."""
    length, prefix = (24, "call_") if form in (ToolForm.HERMES, ToolForm.LLAMA) else (9, "")
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def tool_grammar(
    form: ToolForm,
    tools: Sequence[ToolFunction],
    special_tokens: Mapping[int, str],
    *,
    most: int | None,
    answer_schema: Mapping[str, Any] | None = None,
) -> str:
    """A Lark grammar of one to `most` calls (None: any number); with `answer_schema`, of that JSON too."""
    ids = {text: token for token, text in special_tokens.items()}

    def literal(text: str) -> str:
        return f"<[{ids[text]}]>" if text in ids else json.dumps(text)

    key = "parameters" if form is ToolForm.LLAMA else "arguments"
    rules = [f"args{number}: {json_rule(tool.schema_of_arguments)}" for number, tool in enumerate(tools)]
    for number, tool in enumerate(tools):
        if form is ToolForm.MISTRAL_ARGS:
            body = f"{json.dumps(tool.name)} {literal(_ARGS)} args{number}"
        else:
            head = json.dumps(f'{{"name": "{tool.name}", "{key}": ')
            body = f'{head} args{number} "}}"'
        rules.append(f"call{number}: {body}")
    rules.append("call: " + " | ".join(f"call{number}" for number in range(len(tools))))
    more = most is None or most > 1
    if form is ToolForm.HERMES:
        rules.append(f'item: {literal(OPEN)} "\\n" call "\\n" {literal(CLOSE)}')
        calls = 'item ("\\n" item)*' if more else "item"
    elif form is ToolForm.MISTRAL_ARGS:
        rules.append(f"item: {literal(_MISTRAL)} call")
        calls = "item+" if more else "item"
    elif form is ToolForm.MISTRAL:
        calls = f'{literal(_MISTRAL)} "[" call' + (' (", " call)*' if more else "") + ' "]"'
    else:
        calls = "call" + (' ("; " call)*' if more else "")
    rules.append(f"calls: {calls}")
    if answer_schema is not None:
        rules.append(f"answer: {json_rule(answer_schema)}")
    rules.insert(0, "start: calls" + (" | answer" if answer_schema is not None else ""))
    return "\n".join(rules) + "\n"
