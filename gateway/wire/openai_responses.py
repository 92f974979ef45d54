"""The OpenAI Responses API (also xAI, DeepSeek, Groq, OpenRouter, Azure): usage only in the terminal event."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.core.usage import ExtraUsage, Usage
from gateway.wire.base import BaseFormat
from gateway.wire.ceiling import SEARCHES_MAX, hidden_prompt_tokens, prompt_at_most
from gateway.wire.contract import RequestFacts
from gateway.wire.fields import count, count_asked, decode, first, items, mapping, partition, text
from gateway.wire.image_tokens import OPENAI
from gateway.wire.images import MADE_TOKENS_MAX
from gateway.wire.media import media_of, media_usage
from gateway.wire.reader import Reader, carries
from gateway.wire.reasoning import openai_hidden
from gateway.wire.requests import as_json, decode_outlined, loads, prompt_text, require_model, uncollectable
from gateway.wire.shapes import Messages, Parts, kinds, messages_show

TERMINAL = ("response.completed", "response.incomplete", "response.failed")
_TERMINAL_MARKS = tuple(f'"{kind}"'.encode() for kind in TERMINAL)


class Members(msgspec.Struct):
    model: Any = None
    stream: Any = None
    max_output_tokens: Any = None
    service_tier: Any = None
    background: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    reasoning: Any = None


class Request(Members):
    """With the outline of the prompt."""

    input: Messages = None
    tools: Parts = None


class Response(msgspec.Struct):
    id: Any = None
    model: Any = None
    status: Any = None
    usage: Any = None
    error: Any = None
    output: Any = None
    service_tier: Any = None
    tool_usage: Any = None
    tools: Any = None


class Event(msgspec.Struct):
    type: Any = None
    response: Response | None = None
    error: Any = None
    message: Any = None
    delta: Any = None


class ResponsesReader(Reader):
    def interesting(self, block: bytes) -> bool:
        if b'"usage"' not in block and b'"error"' not in block:
            return False
        return carries(block, b'"error"', b'"error":null') or any(kind in block for kind in _TERMINAL_MARKS)

    def observe(self, data: bytes) -> bool:
        event = decode(data, Event)
        if event is None:
            return False
        if event.type == "error":
            self.note_failure(event.message or event.error or "error")
        elif event.error is not None:
            self.note_failure(event.error)
        if event.response is not None and event.type in TERMINAL:
            self._read(event.response)
            self.finished = True
            self.final = self.usage is not None
        return False

    def _read(self, response: Response) -> None:
        self.note(response.model, response.id, response.service_tier)
        self.note_failure(response.error)
        self.usage = responses_usage(response.usage, response)

    def observe_body(self, data: bytes) -> None:
        response = decode(data, Response)
        if response is None:
            return
        self._read(response)
        self.finished = response.status not in ("queued", "in_progress")

    def observe_usage(self, usage: dict[str, Any]) -> None:
        self.usage = responses_usage(usage, None)
        self.final = self.finished = self.usage is not None

    def identify(self, data: bytes) -> None:
        event = decode(data, Event)
        if event is not None and event.response is not None:
            self.note(event.response.model, event.response.id, event.response.service_tier)

    def event_text(self, data: bytes) -> str:
        event = decode(data, Event)
        return (text(event.delta) or "") if event else ""

    def body_text(self, data: bytes) -> str:
        response = decode(data, Response)
        return "\n".join(_item_text(mapping(item)) for item in (items(response.output) if response else []))


def _item_text(item: dict[str, Any]) -> str:
    return prompt_text(item.get("content"), item.get("summary"), item.get("name"), item.get("arguments"))


def responses_usage(value: Any, response: Response | None) -> Usage | None:
    """Canonical usage: cached and reasoning tokens are parts of their sides, with every provider.

    `response`: it lists the tools that were used, which are billed by the call or as tokens of another model.
    """
    usage = mapping(value)
    inputs, outputs = mapping(usage.get("input_tokens_details")), mapping(usage.get("output_tokens_details"))
    taken, given = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if taken is None and given is None:
        return None
    made = response or Response()
    return partition(
        Usage(
            input_tokens=taken,
            cached_input_tokens=count(inputs.get("cached_tokens")),
            cache_write_tokens=count(inputs.get("cache_write_tokens")),
            input_audio_tokens=count(inputs.get("audio_tokens")),
            input_image_tokens=count(inputs.get("image_tokens")),
            output_tokens=given,
            reasoning_tokens=count(outputs.get("reasoning_tokens")),
            output_audio_tokens=count(outputs.get("audio_tokens")),
            web_searches=_web_searches(usage, made),
            file_searches=_calls(made.output, "file_search_call"),
            extra=_images_drawn(made),
        )
    )


def _web_searches(usage: dict[str, Any], response: Response) -> int | None:
    """Searches the provider made and bills by the call: OpenAI and xAI count them, older answers only list them."""
    told = count(mapping(mapping(response.tool_usage).get("web_search")).get("num_requests"))
    details = mapping(usage.get("server_side_tool_usage_details"))
    if told is None and details:
        return sum(count(details.get(name)) or 0 for name in ("web_search_calls", "x_search_calls"))
    return first(told, count(usage.get("num_server_side_tools_used")), _calls(response.output, "web_search_call"))


def _calls(output: Any, kind: str) -> int | None:
    """How many items of `kind` there are; None for none, for a list that is not there tells nothing."""
    return sum(mapping(item).get("type") == kind for item in items(output)) or None


def _images_drawn(response: Response) -> tuple[ExtraUsage, ...]:
    """The tokens of the image model that the tool `image_generation` called."""
    used = mapping(mapping(response.tool_usage).get("image_gen"))
    taken, given = count(used.get("input_tokens")) or 0, count(used.get("output_tokens")) or 0
    if not taken and not given:
        return ()
    tools = [mapping(tool) for tool in items(response.tools)]
    model = first(*(text(tool.get("model")) for tool in tools if tool.get("type") == "image_generation"))
    return (
        ExtraUsage(
            kind="image_generation",
            model=model or IMAGE_MODEL,
            input_tokens=taken,
            input_image_tokens=count(mapping(used.get("input_tokens_details")).get("image_tokens")) or 0,
            output_tokens=given,
            output_image_tokens=count(mapping(used.get("output_tokens_details")).get("image_tokens")) or 0,
        ),
    )


IMAGE_MODEL = "gpt-image-1"
"""What the tool `image_generation` draws with where it is not told."""


class OpenAIResponses(BaseFormat):
    """`/responses`."""

    name = "openai_responses"
    reader = ResponsesReader

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_outlined(body, Request, Members)
        model = require_model(request.model, path)
        if request.background:
            raise uncollectable("background")
        return RequestFacts(
            model=model,
            stream=request.stream is True,
            max_output_tokens=count_asked(request.max_output_tokens),
            service_tier=text(request.service_tier),
            at_most=responses_at_most(body, request, model),
            hidden_tokens_max=openai_hidden(model, None, request.reasoning),
        )

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        return prompt_text(
            request.get("instructions"),
            request.get("input"),
            as_json(request.get("tools")),
            as_json(mapping(request.get("text")).get("format")),
        )

    def request_media(self, body: bytes, model: str) -> Usage:
        return media_usage(media_of(body, "input"), OPENAI, model)


_TEXT_ITEMS = frozenset(
    {None, "message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "item_reference"}
    | {"custom_tool_call_output", "web_search_call", "file_search_call", "code_interpreter_call", "mcp_call"}
    | {"mcp_list_tools", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output"}
    | {"apply_patch_call", "apply_patch_call_output", "compaction", "tool_search_call", "tool_search_output"}
)
_CLIENT_TOOLS = {"function", "custom", "local_shell", "shell", "apply_patch", "namespace", ""}
IMAGES_DRAWN_MAX = 4


def responses_at_most(body: bytes, request: Members, model: str) -> Usage | None:
    """The most that a response can use beside text: what came before may be on the provider's side."""
    outlined = request if isinstance(request, Request) else None
    tools = kinds(outlined.tools) - _CLIENT_TOOLS if outlined is not None else {"image_generation"}
    shown = outlined is None or messages_show(outlined.input, items=_TEXT_ITEMS)
    most = prompt_at_most(
        body,
        OPENAI,
        model,
        media=media_of(body, "input") if shown else None,
        elsewhere=bool(tools or request.previous_response_id or request.conversation or request.prompt)
        or _refers(outlined),
        tool_tokens=hidden_prompt_tokens(model),
    )
    if not tools:
        return most
    drawn = ExtraUsage(kind="image_generation", model=IMAGE_MODEL, output_tokens=IMAGES_DRAWN_MAX * MADE_TOKENS_MAX)
    return replace(
        most or Usage(input_tokens=len(body)),
        web_searches=SEARCHES_MAX,
        file_searches=SEARCHES_MAX,
        extra=(drawn,) if "image_generation" in tools else (),
    )


def _refers(request: Request | None) -> bool:
    """An item of it is on the provider's side."""
    items_in = request.input if request is not None and isinstance(request.input, list) else ()
    return any(item.type == "item_reference" for item in items_in)
