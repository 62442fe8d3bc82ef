# SPDX-License-Identifier: Apache-2.0
"""The model's chat template, rendered in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slmserve.errors import StartError, invalid
from slmserve.tools import ToolForm, find_form
from slmwire.reasons import Reason

TEMPLATE_FILE: Final = "chat_template.jinja"
CONFIG_FILE: Final = "tokenizer_config.json"


class ChatTemplate:
    """Turns messages into the prompt that the model was trained on."""

    def __init__(
        self,
        template: Template,
        special_tokens: Mapping[str, str],
        *,
        tool_form: ToolForm | None = None,
        for_tools: Template | None = None,
    ) -> None:
        """`tool_form` None: it takes no tools; `for_tools` is the one to use with them, if another."""
        self._template = template
        self._for_tools = for_tools or template
        self._special_tokens = dict(special_tokens)
        self.tool_form = tool_form

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """Prompt text that ends where the assistant begins; raises ApiError 400 when refused."""
        template = self._for_tools if tools else self._template
        try:
            return template.render(
                messages=messages,
                add_generation_prompt=True,
                tools=tools or None,
                documents=None,
                **self._special_tokens,
            )
        except TemplateError as error:
            raise invalid(
                f"the model's chat template refuses these messages: {str(error)[:200]}", param="messages"
            ) from error
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise invalid(
                "the model's chat template cannot render these messages", param="messages"
            ) from error


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(pattern: str) -> str:
    return datetime.now(UTC).strftime(pattern)


def build_template(source: str, special_tokens: Mapping[str, str], *, tools_source: str = "") -> ChatTemplate:
    """Compile as transformers does; raises jinja2.TemplateError.

    `tools_source` is the template to use with tools where the model has another one for them.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return ChatTemplate(
        environment.from_string(source),
        special_tokens,
        tool_form=find_form(tools_source or source),
        for_tools=environment.from_string(tools_source) if tools_source else None,
    )


def _token_text(value: Any) -> str:
    """Token entries are strings or {"content": ...}."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _sources(model_dir: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """The template, and the one for tools where there is another."""
    path = model_dir / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8"), ""
    source, for_tools = config.get("chat_template"), None
    if isinstance(source, list):
        named = {e.get("name"): e.get("template") for e in source if isinstance(e, Mapping)}
        source, for_tools = named.get("default"), named.get("tool_use")
    return source if isinstance(source, str) else "", for_tools if isinstance(for_tools, str) else ""


def load_template(model_dir: Path) -> ChatTemplate | None:
    """The model's template or None when it has none; raises StartError (Unfit) for a broken one."""
    config: Any = {}
    path = model_dir / CONFIG_FILE
    try:
        if path.is_file():
            config = json.loads(path.read_bytes())
        if not isinstance(config, Mapping):
            raise ValueError("not an object")
        source, for_tools = _sources(model_dir, config)
        tokens = {n: _token_text(config.get(n)) for n in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return build_template(source, tokens, tools_source=for_tools) if source else None
    except (OSError, ValueError, TemplateError) as error:
        message = f"the chat template cannot be read: {' '.join(str(error).split())[:300]}"
        raise StartError(Reason.UNFIT, message) from error
