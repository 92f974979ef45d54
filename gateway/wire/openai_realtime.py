"""OpenAI's realtime protocol as far as money is concerned: JSON events over a WebSocket, in both directions. Pure.

A session has one conversation. Each response is billed for the whole of it, by classes: text, audio, images, cached
ones of each; `response.done` tells how much. Where transcription is on, what the caller said is billed beside, on
another model, by an event of its own. The names of the API's beta are read too.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec
import orjson

from gateway import errors
from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.wire.audio import Transcript, audio_usage
from gateway.wire.base import BaseFormat
from gateway.wire.contract import RequestFacts
from gateway.wire.fields import count, decode, failure, first, items, mapping, partition, text
from gateway.wire.image_tokens import OPENAI

WINDOW_TOKENS = 131_072
"""No realtime model has a larger one: no prompt is larger."""
INPUT_TOKENS_PER_S = OPENAI.audio_tokens_per_s
OUTPUT_TOKENS_PER_S = 20
OUTPUT_TOKENS_PER_S_MAX = 40
"""What is held for; OpenAI says 20."""
TRANSCRIPT_TOKENS_PER_S_MAX = 16
"""Nobody speaks as many tokens."""
ITEM_TOKENS = 16
"""What separates an item that the provider makes itself from the next."""
BYTES_PER_S_MIN = 8_000
"""G.711, of the formats offered the one with the most sound in a byte."""
BYTES_PER_TEXT_TOKEN = 4
TEXT_KEPT_CHARACTERS = 256 * 1024
"""Of the text since the last response, to be counted if the next one's usage is never told."""

VALUES_MAX = 16 * 1024
"""An event of the client with more values than that is not read: it would take longer than 10 ms."""
SOUND = "input_audio_buffer.append"

CREATE = "response.create"
HARMLESS = frozenset(
    {
        "response.cancel",
        "output_audio_buffer.clear",
        "input_audio_buffer.clear",
        "conversation.item.truncate",
        "conversation.item.delete",
        "conversation.item.retrieve",
    }
)
"""Events of the client after which no model goes to work. After all others one may: a response may be asked for, or
begin by itself when speech ends, and sound may be transcribed."""
KEY_PROTOCOL = "openai-insecure-api-key."
"""How browsers, which cannot set headers, send the key: in a subprotocol."""


class ClientEvent(msgspec.Struct):
    type: Any = None
    event_id: Any = None
    audio: msgspec.Raw = msgspec.Raw()
    item: Any = None
    session: Any = None
    response: Any = None

    unread: bool = False
    """It has too many values to be read; it may be anything of its type."""


class _Outline(msgspec.Struct):
    type: Any = None
    event_id: Any = None
    audio: msgspec.Raw = msgspec.Raw()


class ServerEvent(msgspec.Struct):
    type: Any = None
    response: Any = None
    response_id: Any = None
    session: Any = None
    delta: msgspec.Raw = msgspec.Raw()
    usage: Any = None
    transcript: Any = None
    error: Any = None

    @property
    def of_response(self) -> str | None:
        """The id of the response it belongs to."""
        return text(self.response_id) or text(mapping(self.response).get("id"))


def client_event(data: bytes) -> ClientEvent:
    """An event of the client. What is no event has no type: it could be anything."""
    if len(data) <= VALUES_MAX:
        event = decode(data, ClientEvent)
        return event if event is not None and isinstance(event.type, str) else ClientEvent()
    outline = decode(data, _Outline)
    if outline is None or not isinstance(outline.type, str):
        return ClientEvent()
    unread = outline.type != SOUND and sum(map(data.count, (b",", b"[", b"{"))) > VALUES_MAX
    if unread or outline.type == SOUND:
        return ClientEvent(outline.type, outline.event_id, outline.audio, unread=unread)
    return decode(data, ClientEvent) or ClientEvent()


def server_event(data: bytes) -> ServerEvent:
    """An event of the provider. What is no event has no type."""
    return decode(data, ServerEvent) or _odd_event(data)


def _odd_event(data: bytes) -> ServerEvent:
    """Half of a surrogate pair in what a model said is no Unicode and yet JSON to many: its usage counts."""
    try:
        told = mapping(json.loads(data.decode("utf-8", "replace")))
    except (ValueError, RecursionError):
        return ServerEvent()
    return ServerEvent(
        type=told.get("type"),
        response=told.get("response"),
        response_id=told.get("response_id"),
        session=told.get("session"),
        usage=told.get("usage"),
        error=told.get("error"),
    )


def error_event(error: ObolError, event_id: Any = None) -> bytes:
    """What the client is told within the session. `event_id`: of the client's event that is refused."""
    told = errors.body(error, "openai")["error"]
    return orjson.dumps({"type": "error", "event_id": None, "error": {**told, "event_id": text(event_id)}})


def cancel_event(response_id: str) -> bytes:
    """Has the provider end a response; its `response.done` then tells what it used."""
    return orjson.dumps({"type": "response.cancel", "response_id": response_id})


def _sound_bytes(encoded: msgspec.Raw) -> int:
    """Of base64 in JSON."""
    return max(0, memoryview(encoded).nbytes - 2) * 3 // 4


class Settings(NamedTuple):
    """What a session says of itself, None where it does not."""

    model: str | None
    transcription_model: str | None
    input_bytes_per_s: int | None
    output_bytes_per_s: int | None
    max_output_tokens: int | None
    text: str
    """Instructions and tools."""
    elsewhere: bool
    """Its prompt is a stored one, of unknown size."""


def session_settings(session: Any) -> Settings:
    """Of a session object, in the names of the API or of its beta."""
    told = mapping(session)
    audio = mapping(told.get("audio"))
    heard, said = mapping(audio.get("input")), mapping(audio.get("output"))
    transcription = mapping(first(heard.get("transcription"), told.get("input_audio_transcription")))
    tools = told.get("tools")
    return Settings(
        text(told.get("model")),
        text(transcription.get("model")),
        _bytes_per_s(first(heard.get("format"), told.get("input_audio_format"))),
        _bytes_per_s(first(said.get("format"), told.get("output_audio_format"))),
        first(count(told.get("max_output_tokens")), count(told.get("max_response_output_tokens"))),
        (text(told.get("instructions")) or "") + (orjson.dumps(tools).decode() if tools else ""),
        bool(told.get("prompt")),
    )


def _bytes_per_s(format_: Any) -> int | None:
    if isinstance(format_, str):
        return 48_000 if format_ == "pcm16" else BYTES_PER_S_MIN
    told = mapping(format_)
    if told.get("type") == "audio/pcm":
        return 2 * (count(told.get("rate")) or 24_000)
    return BYTES_PER_S_MIN if told else None


def response_usage(event: ServerEvent) -> Usage | None:
    """Canonical usage of a `response.done`; None where it tells none. (xAI puts it beside the response.)"""
    usage = mapping(mapping(event.response).get("usage")) or mapping(event.usage)
    inputs, outputs = mapping(usage.get("input_token_details")), mapping(usage.get("output_token_details"))
    cached = mapping(inputs.get("cached_tokens_details"))
    taken, given = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if taken is None and given is None:
        return None
    return partition(
        Usage(
            input_tokens=taken,
            cached_input_tokens=count(inputs.get("cached_tokens")),
            input_audio_tokens=count(inputs.get("audio_tokens")),
            cached_audio_tokens=count(cached.get("audio_tokens")),
            input_image_tokens=count(inputs.get("image_tokens")),
            cached_image_tokens=count(cached.get("image_tokens")),
            output_tokens=given,
            reasoning_tokens=count(outputs.get("reasoning_tokens")),
            output_audio_tokens=count(outputs.get("audio_tokens")),
        )
    )


def response_failure(event: ServerEvent) -> str | None:
    """Why a response failed; None for one that ended, or was ended."""
    response = mapping(event.response)
    if response.get("status") != "failed":
        return None
    return failure(mapping(response.get("status_details")).get("error")) or "failed"


def transcription_usage(event: ServerEvent) -> Usage | None:
    """Canonical usage of `conversation.item.input_audio_transcription.completed`: a length or tokens."""
    if not mapping(event.usage):
        return None
    return audio_usage(Transcript(usage=event.usage, text=event.transcript))


class Amount(NamedTuple):
    """Tokens by class, at most."""

    text: int = 0
    audio: int = 0
    image: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(self.text + other.text, self.audio + other.audio, self.image + other.image)

    def minus(self, other: Amount) -> Amount:
        return Amount(self.text - other.text, self.audio - other.audio, self.image - other.image)

    def within(self, other: Amount) -> bool:
        return self.text <= other.text and self.audio <= other.audio and self.image <= other.image

    def usage(self) -> Usage:
        """As the prompt of a response: no larger than the window, and of that whatever part is dearest."""
        whole = min(sum(self), WINDOW_TOKENS)
        return Usage(
            input_tokens=whole,
            input_audio_tokens=min(self.audio, whole),
            input_image_tokens=min(self.image, whole - min(self.audio, whole)),
            output_audio_tokens=WINDOW_TOKENS,
        )


class Conversation:
    """How large the next response's prompt can be: what the last one took and gave, and what has been added since.

    No token of text is shorter than a byte; sound has so many a second.
    """

    def __init__(self) -> None:
        self._told = Amount()
        self._told_at = Amount()
        self.added = Amount()
        """Since the session began."""
        self._texts: list[str] = []
        self._kept_characters = 0
        self.input_bytes_per_s = self.output_bytes_per_s = BYTES_PER_S_MIN
        self.heard_us = 0
        """Sound that came in, as long as it can be."""

    def at_most(self) -> Amount:
        return self._told.plus(self.added.minus(self._told_at))

    def sent(self, event: ClientEvent, size_bytes: int) -> None:
        """The client sends an event of so many bytes."""
        if event.type is None:
            self._hear(size_bytes)
        elif event.type == SOUND:
            self._hear(_sound_bytes(event.audio))
        elif event.unread and event.type not in HARMLESS:
            self._hear(size_bytes)
            self._add(Amount(text=size_bytes))
        elif event.type not in HARMLESS:
            self._keep(session_settings(event.response).text)
            self._add_items([event.item, *items(mapping(event.response).get("input"))], size_bytes)

    def describe(self, settings: Settings) -> None:
        """The provider tells of the session."""
        self.input_bytes_per_s = settings.input_bytes_per_s or self.input_bytes_per_s
        self.output_bytes_per_s = settings.output_bytes_per_s or self.output_bytes_per_s
        if settings.elsewhere:
            self._add(Amount(text=WINDOW_TOKENS))

    def began(self, settings: Settings) -> None:
        """The same for the first time: the prompt has the provider's own instructions."""
        self.describe(settings)
        self._add(Amount(text=len(settings.text.encode())))
        self._keep(settings.text)

    def committed(self) -> None:
        """What was heard becomes an item."""
        self._add(Amount(text=ITEM_TOKENS))

    def answered(self, usage: Usage, began_at: Amount) -> None:
        """A response in this conversation was told to have used so much. `began_at`: `added` when it began."""
        audio, image = usage.input_audio_tokens or 0, usage.input_image_tokens or 0
        said = usage.output_audio_tokens or 0
        self._told = Amount(usage.total_tokens - audio - image - said, audio + said, image)
        self._told_at = began_at
        self._texts.clear()
        self._kept_characters = 0

    def produced(self, amount: Amount) -> None:
        """A response of which nothing was told left so much at most."""
        self._add(amount)

    def prompt_text(self) -> str:
        """What was written since the last response."""
        return "\n".join(self._texts)

    def prompt_known(self) -> Amount:
        """What the prompt is without that text, as near as can be told."""
        return Amount(self._told.text, self.at_most().audio, self.at_most().image)

    def _hear(self, size_bytes: int) -> None:
        heard_us = size_bytes * 1_000_000 // self.input_bytes_per_s
        self.heard_us += heard_us
        self._add(Amount(audio=-(-heard_us * INPUT_TOKENS_PER_S // 1_000_000)))

    def _add_items(self, added: list[Any], size_bytes: int) -> None:
        """Those of one event of so many bytes."""
        audio = images = other_bytes = 0
        for part in (mapping(part) for item in added for part in items(mapping(item).get("content"))):
            if sound := text(part.get("audio")):
                other_bytes += len(sound)
                audio += len(sound) * 3 // 4 * INPUT_TOKENS_PER_S // self.input_bytes_per_s + 1
            if image := text(part.get("image_url")):
                other_bytes += len(image)
                images += OPENAI.image("", None, "high")
            self._keep(text(part.get("text")) or text(part.get("transcript")) or "")
        for item in added:
            self._keep(text(mapping(item).get("output")) or "")
        self._add(Amount(max(0, size_bytes - other_bytes), audio, images))

    def _add(self, amount: Amount) -> None:
        self.added = self.added.plus(amount)

    def _keep(self, words: str) -> None:
        room = TEXT_KEPT_CHARACTERS - self._kept_characters
        if words and room > 0:
            self._texts.append(words[:room])
            self._kept_characters += len(words)


class Produced:
    """What one response has produced so far."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self.audio_bytes = 0
        self._texts: list[str] = []

    def take(self, event: ServerEvent) -> None:
        """One delta."""
        if "audio.delta" in event.type:
            self.audio_bytes += _sound_bytes(event.delta)
        elif (words := decode(bytes(event.delta), str)) is not None:
            self.text_bytes += len(words.encode("utf-8", "surrogatepass"))
            if self.text_bytes <= TEXT_KEPT_CHARACTERS:
                self._texts.append(words)

    def at_most(self, bytes_per_s: int) -> Amount:
        return Amount(self.text_bytes, -(-self.audio_bytes * OUTPUT_TOKENS_PER_S_MAX // bytes_per_s))

    def audio_tokens(self, bytes_per_s: int) -> int:
        """By OpenAI's rule."""
        return -(-self.audio_bytes * OUTPUT_TOKENS_PER_S // bytes_per_s)

    def uncounted(self) -> str:
        """The text since the last time."""
        words = "".join(self._texts)
        self._texts.clear()
        return words


class OpenAIRealtime(BaseFormat):
    """The format of each response of a session. It is no format of HTTP: `formats.py` does not have it."""

    name = "openai_realtime"

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        raise ObolError("forward_endpoint_not_supported", "realtime sessions are WebSockets", param="u")


REALTIME = OpenAIRealtime()
