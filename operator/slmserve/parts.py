# SPDX-License-Identifier: Apache-2.0
"""Parts of request bodies, checked at the edge: messages, tools, forms of answers."""

import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_TOOLS: Final = 128
_Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Strict(BaseModel):
    # strict: "5" is not a number and 1 is not a truth; hide_input: no prompt in an error's text.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class TextPart(Strict):
    """One text part of a message."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """What an assistant called; `arguments` is JSON text."""

    name: _Text
    arguments: str


class ToolCall(Strict):
    """A call that an assistant's message holds."""

    id: _Text
    type: Literal["function"] = "function"
    function: CalledFunction

    def to_template(self) -> dict[str, Any]:
        """As chat templates expect it: the arguments as an object; raises ValueError for others."""
        arguments = json.loads(self.function.arguments or "{}")
        if not isinstance(arguments, dict):
            raise ValueError
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


class Message(Strict):
    """One chat message; the content is text or text parts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=1000)] | None = None
    name: _Text | None = None
    refusal: None = None
    audio: None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: _Text | None = None
    function_call: None = None
    annotations: Any = None

    @property
    def text(self) -> str:
        """The content as one text."""
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content or [])

    @property
    def is_about_tools(self) -> bool:
        """Whether only a template that takes tools can render it."""
        return self.role == "tool" or bool(self.tool_calls)

    def to_template(self) -> dict[str, Any]:
        """`{role, content}`, and what belongs to tools, as chat templates expect them."""
        role = "system" if self.role == "developer" else self.role
        shown: dict[str, Any] = {"role": role, "content": self.text}
        if self.tool_calls:
            shown["tool_calls"] = [call.to_template() for call in self.tool_calls]
        if self.role == "tool":
            shown["tool_call_id"] = self.tool_call_id
            if self.name:
                shown["name"] = self.name
        return shown


class ToolFunction(Strict):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """Schema of the arguments; a function without parameters takes an empty object."""
        return self.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


class Tool(Strict):
    """One entry of `tools`."""

    type: Literal["function"]
    function: ToolFunction

    def to_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.schema_of_arguments
        return {"type": "function", "function": function}


class ChosenName(Strict):
    """The function that has to be called."""

    name: str


class ChosenTool(Strict):
    """`tool_choice` by name."""

    type: Literal["function"]
    function: ChosenName


class TextFormat(Strict):
    """Answers of any form."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Answers that are one JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A schema with a name; it is followed to the letter whether `strict` or not."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    body: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """Answers that follow a JSON schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
