"""OpenAI chat completions: a provider's answer, whole or streamed, read."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.usage import Usage
from gateway.wire.fields import Json, items, mapping, text
from gateway.wire.openai_usage import chat_usage
from gateway.wire.translate.failures import failed
from gateway.wire.translate.framing import decoded
from gateway.wire.translate.model import (
    Answer,
    Choice,
    Ended,
    Event,
    Failed,
    Media,
    MediaDelta,
    Part,
    Started,
    Stop,
    Stopped,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolDelta,
    ToolStarted,
    Used,
)
from gateway.wire.translate.values import json_text

_STOPS: dict[str, Stop] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tools",
    "tool_call": "tools",
    "function_call": "tools",
    "content_filter": "filtered",
}


def _usage(value: Json, provider: str) -> Usage | None:
    """At the top, else in Groq's older place, else in Moonshot's."""
    choices = items(value.get("choices"))
    found = value.get("usage") or mapping(value.get("x_groq")).get("usage")
    found = found or mapping(choices[0] if choices else None).get("usage")
    return chat_usage(found, provider) if found else None


def _pieces(message: Json) -> Iterator[Text | Thinking]:
    """Reasoning and text of a message or delta; `content` is a string, or parts that may be reasoning (Mistral)."""
    details = [mapping(detail) for detail in items(message.get("reasoning_details"))]
    reasoning = text(message.get("reasoning_content")) or text(message.get("reasoning"))
    if reasoning:
        yield Thinking(reasoning)
    for detail in details:
        signature, data = text(detail.get("signature")), text(detail.get("data"))
        if signature:
            yield Thinking(signature=signature)
        elif data and detail.get("type") == "reasoning.encrypted":
            yield Thinking(redacted=data)
    content = message.get("content")
    if isinstance(content, str) and content:
        yield Text(content)
    for part in map(mapping, items(content)):
        if part.get("type") == "thinking":
            yield Thinking("".join(text(mapping(one).get("text")) or "" for one in items(part.get("thinking"))))
        elif said := text(part.get("text")):
            yield Text(said)
    if refused := text(message.get("refusal")):
        yield Text(refused)


def _signature(call: Json) -> str:
    google = mapping(mapping(call.get("extra_content")).get("google"))
    return text(google.get("thought_signature")) or ""


def _arguments(function: Json) -> str:
    given = function.get("arguments")
    return given if isinstance(given, str) else json_text(given) if given else ""


def _drawn(message: Json) -> Iterator[Media]:
    for image in items(message.get("images")):
        url = text(mapping(mapping(image).get("image_url")).get("url")) or ""
        head, comma, data = url.partition(";base64,")
        if comma:
            yield Media(head.removeprefix("data:"), data=data)
        elif url:
            yield Media("image/*", url=url)


class OpenAIReader:
    """Reads one answer of `provider`. `seed` makes the ids of calls that have none."""

    def __init__(self, provider: str, seed: str) -> None:
        self._provider = provider
        self._seed = seed
        self._started = self._stopped = self._ended = False
        self._calls: dict[tuple[int, str], tuple[int, str]] = {}
        self._called: dict[int, int] = {}

    def whole(self, body: bytes) -> Answer | Failed:
        value = decoded(body)
        if not items(value.get("choices")) and (value.get("error") or "choices" not in value):
            return failed(value)
        choices = tuple(self._choice(mapping(choice)) for choice in items(value["choices"]))
        told = (text(value.get("id")) or self._seed, text(value.get("model")) or "")
        return Answer(*told, choices, _usage(value, self._provider))

    def _choice(self, choice: Json) -> Choice:
        message = mapping(choice.get("message"))
        parts: list[Part] = [*_joined(_pieces(message)), *_drawn(message)]
        calls = [mapping(call) for call in items(message.get("tool_calls"))]
        for number, call in enumerate(calls):
            function = mapping(call.get("function"))
            call_id = text(call.get("id")) or f"call_{self._seed}_{number}"
            name, arguments = text(function.get("name")) or "", _arguments(function) or "{}"
            parts.append(ToolCall(call_id, name, arguments, _signature(call)))
        return Choice(tuple(parts), _stop(choice, bool(calls), bool(text(message.get("refusal")))))

    def events(self, data: bytes) -> Iterator[Event]:
        if data.strip() == b"[DONE]":
            yield from self._end()
            return
        value = decoded(data)
        if "choices" in value:
            yield from self._chunk_events(value)
        if value.get("error") or ("choices" not in value and value.get("message")):
            yield failed(value)

    def _chunk_events(self, chunk: Json) -> Iterator[Event]:
        if not self._started:
            self._started = True
            yield Started(text(chunk.get("id")) or self._seed, text(chunk.get("model")) or "")
        for choice in map(mapping, items(chunk["choices"])):
            yield from self._choice_events(choice)
        usage = _usage(chunk, self._provider)
        if usage is not None:
            yield Used(usage)

    def _choice_events(self, choice: Json) -> Iterator[Event]:
        number, delta = choice.get("index"), mapping(choice.get("delta"))
        number = number if isinstance(number, int) else 0
        for piece in _pieces(delta):
            if isinstance(piece, Text):
                yield TextDelta(piece.text, number)
            else:
                yield ThinkingDelta(piece.text, piece.signature, piece.redacted, number)
        for media in _drawn(delta):
            yield MediaDelta(media, number)
        for call in map(mapping, items(delta.get("tool_calls"))):
            yield from self._call_events(call, number)
        if choice.get("finish_reason"):
            self._stopped = True
            yield Stopped(_stop(choice, number in self._called, False), None, number)

    def _call_events(self, call: Json, choice: int) -> Iterator[Event]:
        """A call begins where its place is new, or where another id stands in the place of one."""
        function, call_id = mapping(call.get("function")), text(call.get("id")) or ""
        place = (choice, str(call.get("index", call_id)))
        known = self._calls.get(place)
        if known is None or (call_id and call_id != known[1] and text(function.get("name"))):
            index = self._called.get(choice, 0)
            self._called[choice] = index + 1
            known = self._calls[place] = (index, call_id or f"call_{self._seed}_{choice}_{index}")
            yield ToolStarted(index, known[1], text(function.get("name")) or "", _signature(call), choice)
        if arguments := _arguments(function):
            yield ToolDelta(known[0], arguments, choice)

    def _end(self) -> Iterator[Event]:
        """A few vendors end a stream without a reason."""
        if not self._ended:
            self._ended = True
            if not self._stopped:
                yield Stopped("tools" if self._called else "end")
            yield Ended()

    def finish(self) -> Iterator[Event]:
        """The stream is over. Several vendors send no [DONE]."""
        if self._stopped:
            yield from self._end()


def _joined(pieces: Iterator[Text | Thinking]) -> Iterator[Text | Thinking]:
    """With the proof of reasoning on the reasoning before it, not beside it."""
    last: Text | Thinking | None = None
    for piece in pieces:
        if isinstance(piece, Thinking) and isinstance(last, Thinking) and piece.signature and not last.signature:
            last = Thinking(last.text, piece.signature)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _stop(choice: Json, called: bool, refused: bool) -> Stop:
    """Some vendors say "stop" where tools are to be called."""
    stop = _STOPS.get(str(choice.get("finish_reason")), "end")
    if stop == "end":
        return "refusal" if refused else "tools" if called else "end"
    return stop
