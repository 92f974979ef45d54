"""Response bodies of four wire formats in every legal framing, as exchanges for the replaying fake provider."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INPUT_TOKENS, OUTPUT_TOKENS = 1_003, 57
TEXT = "Grüße, 世界 😀"
"""Two, three and four bytes a character: a split falls into each of them."""


@dataclass(frozen=True)
class Wire:
    """One wire format: where it is asked, with which body, and what it answers (usage of INPUT_ and OUTPUT_TOKENS)."""

    host: str
    path: str
    request: dict[str, Any]
    stream_request: dict[str, Any]
    body: dict[str, Any]
    events: list[tuple[str, Any]]
    """Name ("" for none) and data of each event of the streamed answer."""
    stream_path: str = ""

    @property
    def url(self) -> str:
        return f"https://{self.host}{self.path}"

    @property
    def stream_url(self) -> str:
        return f"https://{self.host}{self.stream_path or self.path}"


_OPENAI_USAGE = {
    "prompt_tokens": INPUT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
}
USAGE_CHUNK = {
    "id": "c1",
    "object": "chat.completion.chunk",
    "model": "gpt-4o-mini",
    "choices": [],
    "usage": _OPENAI_USAGE,
}
MODERATION_CHUNK = {
    "id": "c1",
    "object": "chat.completion.chunk",
    "model": "gpt-4o-mini",
    "choices": [],
    "usage": _OPENAI_USAGE,
    "moderation": {"input": {"type": "moderation_results"}},
}


def _chat_chunk(text: str | None, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "gpt-4o-mini", "choices": [choice], "usage": None}


def _completion_chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return {"id": "c1", "object": "text_completion", "model": "gpt-3.5-turbo-instruct", "choices": [choice]}


_PROMPT = [{"role": "user", "content": "hi"}]
_CHAT = {"model": "gpt-4o-mini", "messages": _PROMPT}
_ASKS = {"stream": True, "stream_options": {"include_usage": True}}

CHAT = Wire(
    host="api.openai.com",
    path="/v1/chat/completions",
    request=_CHAT,
    stream_request=_CHAT | _ASKS,
    body={
        "id": "c1",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": _OPENAI_USAGE,
    },
    events=[
        ("", _chat_chunk(TEXT)),
        ("", _chat_chunk('"usage": {"prompt_tokens": 999999}')),
        ("", _chat_chunk(None, "stop")),
        ("", USAGE_CHUNK),
        ("", "[DONE]"),
    ],
)

COMPLETIONS = Wire(
    host="api.openai.com",
    path="/v1/completions",
    request={"model": "gpt-3.5-turbo-instruct", "prompt": "hi"},
    stream_request={"model": "gpt-3.5-turbo-instruct", "prompt": "hi"} | _ASKS,
    body=_completion_chunk(TEXT, "stop") | {"usage": _OPENAI_USAGE},
    events=[
        ("", _completion_chunk(TEXT)),
        ("", _completion_chunk("", "stop")),
        ("", _completion_chunk("") | {"choices": [], "usage": _OPENAI_USAGE}),
        ("", "[DONE]"),
    ],
)

_RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": "gpt-4o-mini",
    "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TEXT}]}],
    "usage": {
        "input_tokens": INPUT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": OUTPUT_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    },
}


def _typed(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"type": kind, **fields}


RESPONSES = Wire(
    host="api.openai.com",
    path="/v1/responses",
    request={"model": "gpt-4o-mini", "input": "hi"},
    stream_request={"model": "gpt-4o-mini", "input": "hi", "stream": True},
    body=_RESPONSE,
    events=[
        _typed("response.created", response=_RESPONSE | {"status": "in_progress", "output": [], "usage": None}),
        _typed("response.output_text.delta", output_index=0, delta=TEXT),
        _typed("response.completed", response=_RESPONSE),
    ],
)

_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": INPUT_TOKENS - 200,
        "cache_read_input_tokens": 150,
        "cache_creation_input_tokens": 50,
        "output_tokens": OUTPUT_TOKENS,
    },
}
_ANTHROPIC = {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": _PROMPT}

ANTHROPIC = Wire(
    host="api.anthropic.com",
    path="/v1/messages",
    request=_ANTHROPIC,
    stream_request=_ANTHROPIC | {"stream": True},
    body=_MESSAGE,
    events=[
        _typed("message_start", message=_MESSAGE | {"content": [], "usage": _MESSAGE["usage"] | {"output_tokens": 1}}),
        _typed("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        _typed("ping"),
        _typed("content_block_delta", index=0, delta={"type": "text_delta", "text": TEXT}),
        _typed("content_block_stop", index=0),
        _typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": OUTPUT_TOKENS}),
        _typed("message_stop"),
    ],
)


def _gemini_chunk(text: str, output_tokens: int, finish: str | None = None) -> dict[str, Any]:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    return {
        "candidates": [candidate | ({"finishReason": finish} if finish else {})],
        "usageMetadata": {
            "promptTokenCount": INPUT_TOKENS,
            "candidatesTokenCount": output_tokens,
            "totalTokenCount": INPUT_TOKENS + output_tokens,
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r1",
    }


_GEMINI = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}

GEMINI = Wire(
    host="generativelanguage.googleapis.com",
    path="/v1beta/models/gemini-2.5-flash:generateContent",
    stream_path="/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
    request=_GEMINI,
    stream_request=_GEMINI,
    body=_gemini_chunk(TEXT, OUTPUT_TOKENS, "STOP"),
    events=[("", _gemini_chunk(TEXT, 20)), ("", _gemini_chunk('{["', OUTPUT_TOKENS, "STOP"))],
)

WIRES = {
    "chat": CHAT,
    "completions": COMPLETIONS,
    "responses": RESPONSES,
    "anthropic": ANTHROPIC,
    "gemini": GEMINI,
}


@dataclass(frozen=True)
class Framing:
    """How events become bytes."""

    end: str = "\n"
    colon: str = ": "
    between: str = ""
    start: str = ""
    named: bool = True
    pretty: bool = False
    complete: bool = True

    def body(self, events: list[tuple[str, Any]]) -> bytes:
        """All events; the last one without its blank line unless `complete`."""
        text = self.start + "".join(self._event(*event) for event in events)
        return (text if self.complete else text.removesuffix(self.end)).encode()

    def _event(self, name: str, data: Any) -> str:
        lines = [f"event{self.colon}{name}"] if name and self.named else []
        text = (
            data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, indent=1 if self.pretty else None)
        )
        lines += [f"data{self.colon}{line}" for line in text.split("\n")]
        between = self.between.replace("\n", self.end)
        return between + self.end.join(lines) + self.end * 2


FRAMINGS = {
    "lf": Framing(),
    "crlf": Framing(end="\r\n"),
    "cr": Framing(end="\r"),
    "no space": Framing(colon=":"),
    "no space, crlf": Framing(colon=":", end="\r\n"),
    "comments": Framing(between=": keep-alive\n\n:\n", start=":" + " " * 100 + "\n\n"),
    "ids and retries": Framing(between="id: 7\nretry: 1000\n"),
    "comments, cr": Framing(between=": keep-alive\n\n", end="\r"),
    "no event names": Framing(named=False),
    "byte order mark": Framing(start="\ufeff"),
    "data in several lines": Framing(pretty=True),
    "data in several lines, crlf": Framing(pretty=True, end="\r\n"),
    "no last blank line": Framing(complete=False),
}


# What a provider reports, and what must be charged: input tokens, output tokens, whether any were counted here.
# COUNTED stands for a count of the gateway's own.
COUNTED = -1
REPORTED: dict[str, tuple[dict[str, Any], tuple[int, int, bool]]] = {
    "zeros": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (0, 0, False)),
    "a zero output": ({"prompt_tokens": 40, "completion_tokens": 0}, (40, 0, False)),
    "a zero input": ({"prompt_tokens": 0, "completion_tokens": 9}, (0, 9, False)),
    "no output": ({"prompt_tokens": 40}, (40, COUNTED, True)),
    "no input": ({"completion_tokens": 9}, (COUNTED, 9, True)),
    "a null output": ({"prompt_tokens": 40, "completion_tokens": None}, (40, COUNTED, True)),
    "nothing": ({}, (COUNTED, COUNTED, True)),
    "zero cached": (
        {"prompt_tokens": 40, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}},
        (40, 9, False),
    ),
}


def _reporting(usage: dict[str, Any]) -> tuple[bytes, bytes]:
    """A chat answer with this usage, whole and streamed."""
    chunks = [event for event in CHAT.events if event[1] is not USAGE_CHUNK]
    chunks.insert(-1, ("", USAGE_CHUNK | {"usage": usage}))
    return json.dumps(CHAT.body | {"usage": usage}).encode(), FRAMINGS["lf"].body(chunks)


def exchange(name: str, wire: Wire, body: bytes, *, stream: bool) -> dict[str, Any]:
    """A file of the replaying fake."""
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"
    return {
        "id": name,
        "host": wire.host,
        "method": "POST",
        "path": wire.stream_path if stream and wire.stream_path else wire.path,
        "request_body": "",
        "status": 200,
        "response_headers": {"Content-Type": kind, "X-Request-Id": name},
        "response_body": body.decode(),
        "stream": stream,
    }


def write_all(directory: Path) -> None:
    """The JSON answer and each framing of the streamed one of each format, and two with a moderation chunk."""
    made = {}
    for name, wire in WIRES.items():
        made[f"{name} json"] = exchange(f"{name} json", wire, json.dumps(wire.body).encode(), stream=False)
        for framing_name, framing in FRAMINGS.items():
            one = f"{name} {framing_name}"
            made[one] = exchange(one, wire, framing.body(wire.events), stream=True)
    moderated = [*CHAT.events[:-1], ("", MODERATION_CHUNK), ("", "[DONE]")]
    made["chat moderated"] = exchange("chat moderated", CHAT, FRAMINGS["lf"].body(moderated), stream=True)
    array = json.dumps([data for _, data in GEMINI.events], ensure_ascii=False, indent=2).encode()
    made["gemini array"] = exchange("gemini array", GEMINI, array, stream=True)
    made["gemini array"]["response_headers"]["Content-Type"] = "application/json; charset=UTF-8"
    for name, (usage, _) in REPORTED.items():
        whole, streamed = _reporting(usage)
        made[f"chat reports {name}"] = exchange(f"chat reports {name}", CHAT, whole, stream=False)
        made[f"chat streams {name}"] = exchange(f"chat streams {name}", CHAT, streamed, stream=True)
    for number, one in enumerate(made.values()):
        (directory / f"{number:03d}.json").write_text(json.dumps(one))
