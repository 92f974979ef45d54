"""What an answer says, read from its bytes in each dialect by code of its own: what a translation must keep."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from recorded import Exchange

from gateway.wire.contract import RequestFacts
from gateway.wire.formats import FORMATS
from gateway.wire.framing import framing_of
from gateway.wire.translate.framing import Writing
from gateway.wire.translate.translation import DIALECTS, translator

TOKENS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
STOPS = {
    None: "none",
    "stop": "end",
    "end_turn": "end",
    "stop_sequence": "end",
    "pause_turn": "end",
    "eos": "end",
    "STOP": "end",
    1: "end",
    "UNEXPECTED_TOOL_CALL": "end",
    "length": "length",
    "max_tokens": "length",
    "MAX_TOKENS": "length",
    2: "length",
    "tool_calls": "end",
    "tool_call": "end",
    "tool_use": "end",
    "function_call": "end",
    "content_filter": "refused",
    "refusal": "refused",
    "SAFETY": "refused",
}
LIMIT_BYTES = 64 * 1024 * 1024


@dataclass
class Said:
    """One choice. That tools are called shows in `calls`: Gemini has no reason of its own for it."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    stop: str = "none"

    def call(self, name: str, arguments: Any) -> None:
        self.calls.append([name, arguments if isinstance(arguments, str) else json.dumps(arguments)])

    def shown(self) -> tuple[str, str, str, tuple[Any, ...]]:
        calls = tuple((name, _value(arguments)) for name, arguments in self.calls)
        return self.text, self.reasoning, self.stop, calls


def _value(arguments: str) -> Any:
    """Arguments that the model did not finish are text, or stand as such in an object."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return arguments
    return value.get("INVALID_JSON", value)


def told(dialect: str, body: bytes, *, stream: bool, content_type: str) -> list[tuple[Any, ...]]:
    """Each choice of an answer."""
    choices: dict[int, Said] = defaultdict(Said)
    read = {"openai": _openai_chunk if stream else _openai, "anthropic": _anthropic, "google": _google}[dialect]
    for value in payloads(dialect, body, stream=stream, content_type=content_type):
        read(value, choices)
    for said in choices.values():
        if said.stop == "none" and (not stream or b"[DONE]" in body):  # it has ended
            said.stop = "end"
    return [said.shown() for _, said in sorted(choices.items())]


def payloads(dialect: str, body: bytes, *, stream: bool, content_type: str) -> list[dict[str, Any]]:
    name = "gemini_stream" if dialect == "google" and stream else "openai_chat"
    framing = framing_of(name, streamed=stream, content_type=content_type or ("text/event-stream" if stream else ""))
    if framing.name == "whole":
        return [json.loads(body)]
    found = [framing.payload(body[start:end]).strip() for start, end in framing.spans(body)]
    return [json.loads(data) for data in found if data and data != b"[DONE]"]


def _openai(value: dict[str, Any], choices: dict[int, Said], member: str = "message") -> None:
    for choice in value.get("choices") or []:
        said, message = choices[choice.get("index") or 0], choice.get(member) or {}
        said.reasoning += message.get("reasoning_content") or message.get("reasoning") or ""
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            said.text += part.get("text") or ""
            said.reasoning += "".join(one.get("text", "") for one in part.get("thinking") or [])
        said.text += content if isinstance(content, str) else ""
        said.text += message.get("refusal") or ""
        for call in message.get("tool_calls") or []:
            function = call.get("function") or {}
            if function.get("name"):
                said.call(function["name"], "")
            said.calls[call["index"] if member == "delta" and "index" in call else -1][1] += (
                function.get("arguments") or ""
            )
        said.stop = STOPS[choice["finish_reason"]] if choice.get("finish_reason") else said.stop


def _openai_chunk(value: dict[str, Any], choices: dict[int, Said]) -> None:
    _openai(value, choices, "delta")


def _anthropic(value: dict[str, Any], choices: dict[int, Said]) -> None:
    said, kind, block = choices[0], value.get("type"), value.get("content_block") or {}
    if kind == "message":
        for one in value["content"]:
            _block(one, said)
        said.stop = STOPS[value["stop_reason"]]
    elif kind == "content_block_start":
        _block(block, said)
        if block["type"] == "server_tool_use":  # the input of Anthropic's own tools is no call
            said.calls.append(["server", ""])
    elif kind == "content_block_delta":
        delta = value["delta"]
        said.text += delta.get("text") or ""
        said.reasoning += delta.get("thinking") or ""
        if "partial_json" in delta:
            if said.calls[-1][1] == "{}":
                said.calls[-1][1] = ""
            said.calls[-1][1] += delta["partial_json"]
    elif kind == "message_delta":
        said.stop = STOPS[value["delta"]["stop_reason"]]
    elif kind == "message_stop":
        said.calls = [call for call in said.calls if call[0] != "server"]


def _block(block: dict[str, Any], said: Said) -> None:
    said.text += block.get("text") or "" if block["type"] == "text" else ""
    said.reasoning += block.get("thinking") or ""
    if block["type"] == "tool_use":
        said.call(block["name"], block["input"])


def _google(value: dict[str, Any], choices: dict[int, Said]) -> None:
    if (value.get("promptFeedback") or {}).get("blockReason"):
        choices[0].stop = "refused"
    for candidate in value.get("candidates") or []:
        said = choices[candidate.get("index") or 0]
        for part in (candidate.get("content") or {}).get("parts") or []:
            if part.get("thought"):
                said.reasoning += part.get("text") or ""
            else:
                said.text += part.get("text") or ""
            if "functionCall" in part:
                said.call(part["functionCall"].get("name", ""), part["functionCall"].get("args") or {})
        said.stop = STOPS[candidate["finishReason"]] if candidate.get("finishReason") else said.stop


def translated(exchange: Exchange, client: str, *, array: bool = False) -> tuple[bytes, str]:
    """The answer of a recorded exchange as a client of another dialect gets it, and its content type."""
    return translate(
        exchange.response,
        DIALECTS[exchange.format],
        client,
        stream=exchange.stream,
        content_type=exchange.content_type,
        provider=exchange.provider,
        array=array,
    )


def translate(
    body: bytes,
    provider_dialect: str,
    client: str,
    *,
    stream: bool,
    content_type: str = "",
    provider: str = "",
    status: int = 200,
    array: bool = False,
    pieces: list[bytes] | None = None,
) -> tuple[bytes, str]:
    writing = Writing(request_id="req_abc", model="a-model", created_s=1, include_usage=True, array=array)
    one = translator(
        client,
        provider_dialect,
        writing,
        provider_name=provider,
        status=status,
        content_type=content_type or ("text/event-stream" if stream else "application/json"),
        streams=stream,
        limit_bytes=LIMIT_BYTES,
    )
    given = b"".join([one.feed(piece) for piece in pieces or [body]])
    return given + one.finish(), one.content_type


def tokens(body: bytes, dialect: str, *, stream: bool, content_type: str) -> tuple[dict[str, int], bool]:
    """The tokens that a meter of the client's format finds in an answer, zeros left out; whether it was complete."""
    google = "gemini_stream" if stream else "gemini_generate"
    name = {"openai": "openai_chat", "anthropic": "anthropic_messages", "google": google}[dialect]
    facts = RequestFacts(stream=stream)
    meter = FORMATS[name].meter(
        facts, provider="openai", content_type=content_type, hide_usage=False, limit_bytes=LIMIT_BYTES
    )
    meter.feed(body)
    meter.finish()
    reading = meter.reading()
    counts = {name: getattr(reading.usage, name) for name in TOKENS} if reading.usage else {}
    return {name: count for name, count in counts.items() if count}, reading.finished
