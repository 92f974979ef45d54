"""What the three dialects have in common: a chat request, an answer, and the events of a streamed answer.

Every part of a request that a writer may have to refuse knows where it stood (`at`, a path such as
`messages[2].content[0]`), and `Ask.paths` has the client's names of the scalar members.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.core.usage import Usage

Dialect = Literal["openai", "anthropic", "google"]
Role = Literal["user", "assistant"]
Stop = Literal["end", "stop_sequence", "length", "tools", "filtered", "refusal"]
Mode = Literal["auto", "any", "none", "tool"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Text(msgspec.Struct, frozen=True):
    text: str


class Media(msgspec.Struct, frozen=True):
    """An image, a document or sound: base64 `data`, or a `url` to be fetched by the provider."""

    media_type: str
    data: str = ""
    url: str = ""
    name: str = ""
    at: str = ""


class Thinking(msgspec.Struct, frozen=True):
    """Reasoning that shows. `signature`: the provider's own proof of it; `redacted`: it, encrypted, instead of text."""

    text: str = ""
    signature: str = ""
    redacted: str = ""


class ToolCall(msgspec.Struct, frozen=True):
    """`arguments` is JSON text. `signature` is Gemini's proof of the reasoning that led to it."""

    id: str
    name: str
    arguments: str
    signature: str = ""
    at: str = ""


class ToolResult(msgspec.Struct, frozen=True):
    call_id: str
    name: str
    text: str
    failed: bool = False
    media: tuple[Media, ...] = ()
    at: str = ""


Part = Text | Media | Thinking | ToolCall | ToolResult
ASKED = (Text, Media, ToolResult)
"""What a user's message may hold."""
SAID = (Text, Media, Thinking, ToolCall)
"""What an assistant's may."""


class Message(msgspec.Struct, frozen=True):
    role: Role
    parts: tuple[Part, ...]


class Tool(msgspec.Struct, frozen=True):
    """`schema` is the JSON Schema of its arguments, None where it takes none. `strict` is a promise to keep to it."""

    name: str
    description: str
    schema: dict[str, Any] | None
    strict: bool | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    mode: Mode
    name: str = ""


class Output(msgspec.Struct, frozen=True):
    """JSON is asked for; by a `schema`, or any."""

    schema: dict[str, Any] | None
    name: str = ""
    strict: bool | None = None


class Ask(msgspec.Struct, kw_only=True):
    """A request. None, and an empty tuple, are what the client did not ask for."""

    model: str
    stream: bool = False
    include_usage: bool = False
    system: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice | None = None
    parallel: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    output: Output | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    choices: int = 1
    effort: Effort | None = None
    thinking_tokens: int | None = None
    """Of `max_tokens`, at most; 0: no reasoning."""
    show_thinking: bool = True
    user: str | None = None
    tier: str | None = None
    paths: dict[str, str] = {}

    def where(self, name: str) -> str:
        """The client's path of the member `name` of this struct."""
        return self.paths.get(name, name)


class Started(msgspec.Struct, frozen=True):
    id: str
    model: str


class TextDelta(msgspec.Struct, frozen=True):
    text: str
    choice: int = 0


class ThinkingDelta(msgspec.Struct, frozen=True):
    """Text is added to the open thinking; a signature or something redacted ends it."""

    text: str = ""
    signature: str = ""
    redacted: str = ""
    choice: int = 0


class ToolStarted(msgspec.Struct, frozen=True):
    """`index` counts the calls of a choice from 0."""

    index: int
    id: str
    name: str
    signature: str = ""
    choice: int = 0


class ToolDelta(msgspec.Struct, frozen=True):
    """A piece of the JSON text of the arguments."""

    index: int
    arguments: str
    choice: int = 0


class MediaDelta(msgspec.Struct, frozen=True):
    """A picture that the model drew."""

    media: Media
    choice: int = 0


class Stopped(msgspec.Struct, frozen=True):
    stop: Stop
    sequence: str | None = None
    choice: int = 0


class Used(msgspec.Struct, frozen=True):
    """The usage so far; the last one counts."""

    usage: Usage


class Failed(msgspec.Struct, frozen=True):
    """The provider's error. `status` is its HTTP status, 0 inside a stream; `kind` and `param` as it named them."""

    message: str
    status: int = 0
    kind: str = ""
    code: str = ""
    param: str = ""


class Ended(msgspec.Struct, frozen=True):
    """The provider's own end mark."""


Delta = TextDelta | ThinkingDelta | ToolStarted | ToolDelta | MediaDelta | Stopped
Event = Started | Delta | Used | Failed | Ended


class Choice(msgspec.Struct, frozen=True):
    parts: tuple[Part, ...]
    stop: Stop
    sequence: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. `usage` None: the provider told none."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
