"""A realtime session: OpenAI's protocol as far as a client can tell, with usage that a test can foresee.

The directive of the last user text steers a response, as in every other format; `x-fake-provider` on the handshake, all
of them. Server-side turn detection is simple: sound that is not all zero bytes is speech, zero bytes end it.

- prompt tokens = words of all texts of the conversation + 4 an item + 10 a second of sound committed (PCM, 24 kHz);
- output tokens = words said, and twice that as sound beside them where sound is asked for; each word is one delta of
  text and one of 100 ms of sound (two tokens);
- a transcription is billed by the whole seconds of what was committed.

Faults: `reset_mid_stream` drops the connection after two words, `truncated` closes it (code 1011), `stall` says nothing
more, `no_usage` leaves the usage out, `error_event` fails the response, `status:<n>` refuses the handshake.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import orjson
from aiohttp import WSCloseCode, WSMsgType, web

from gateway.local.fake import directive
from gateway.local.fake.call import FakeError, JsonObject
from gateway.local.fake.directive import Directive
from gateway.local.fake.faults import STALL_MAX_S
from gateway.local.fake.records import Record
from gateway.local.fake.sending import reset

MESSAGE_MAX_BYTES = 64 * 1024 * 1024
MESSAGES_MAX = 1_000
BYTES_PER_S = 48_000
SOUND_PER_WORD = base64.b64encode(b"\x01\x02" * (BYTES_PER_S // 20)).decode()
"""A tenth of a second."""
TOKENS_PER_ITEM = 4
OUTPUT_TOKENS_PER_S = 20
DEFAULT_WORDS = 6
WORDS = ("Hello", " there", ",", " how", " may", " I", " help", " you", " today", "?")


class _Ended(Exception):
    """A fault ends the session."""


class FakeSession:
    """One session. `events` of the record are the client's, as they came."""

    def __init__(self, socket: web.WebSocketResponse[Any], request: web.Request, record: Record, defaults: Directive):
        self._socket = socket
        self._request = request
        self._record = record
        self._defaults = defaults
        self._header = request.headers.get(directive.HEADER, "")
        self._session: JsonObject = {
            "type": "realtime",
            "object": "realtime.session",
            "id": f"sess_{record.number}",
            "model": request.query.get("model"),
            "output_modalities": ["audio"],
            "instructions": "You are a helpful, witty and friendly fake.",
            "tools": [],
            "max_output_tokens": "inf",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24_000},
                    "transcription": None,
                    "turn_detection": {"type": "server_vad", "create_response": True, "interrupt_response": True},
                },
                "output": {"format": {"type": "audio/pcm", "rate": 24_000}, "voice": "alloy"},
            },
        }
        self._texts: list[str] = []
        self._items = 0
        self._heard = b""
        self._speaking = False
        self._committed_bytes = 0
        self._count = 0
        self._responses: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until either side ends it."""
        await self._say("session.created", session=self._session)
        try:
            while (message := await self._socket.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
                data = message.data if isinstance(message.data, bytes) else message.data.encode()
                if len(self._record.messages) < MESSAGES_MAX:
                    self._record.messages.append(data)
                await self._take(orjson.loads(data))
        finally:
            for task in self._responses.values():
                task.cancel()
            await asyncio.gather(*self._responses.values(), return_exceptions=True)

    async def _take(self, event: JsonObject) -> None:
        match event.get("type"):
            case "session.update":
                self._session = _merged(self._session, event["session"])
                await self._say("session.updated", session=self._session)
            case "conversation.item.create":
                await self._add(event["item"])
            case "input_audio_buffer.append":
                await self._hear(base64.b64decode(event["audio"]))
            case "input_audio_buffer.commit":
                await self._commit()
            case "response.create":
                self._respond(event.get("response") or {})
            case "response.cancel":
                await self._cancel(event.get("response_id"), "client_cancelled")
            case kind:
                await self._fail(f"Invalid value: {kind!r}.", event.get("event_id"))

    async def _add(self, item: JsonObject) -> None:
        parts = item.get("content") or []
        self._texts += [text for part in parts if (text := part.get("text") or part.get("transcript"))]
        self._texts += [item["output"]] if item.get("output") else []
        self._items += 1
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._say(kind, previous_item_id=None, item={"id": f"item_{self._items}", **item})

    async def _hear(self, sound: bytes) -> None:
        self._heard += sound
        detects = self._session["audio"]["input"]["turn_detection"]
        if detects is None:
            return
        if sound.strip(b"\0") and not self._speaking:
            self._speaking = True
            await self._say("input_audio_buffer.speech_started", audio_start_ms=0, item_id=f"item_{self._items + 1}")
            if detects.get("interrupt_response"):
                await self._cancel(None, "turn_detected")
        elif self._speaking and not sound.strip(b"\0"):
            self._speaking = False
            await self._say("input_audio_buffer.speech_stopped", audio_end_ms=1, item_id=f"item_{self._items + 1}")
            await self._commit()
            if detects.get("create_response"):
                self._respond({})

    async def _commit(self) -> None:
        self._items += 1
        item_id, length = f"item_{self._items}", len(self._heard)
        self._committed_bytes += length
        self._heard = b""
        await self._say("input_audio_buffer.committed", previous_item_id=None, item_id=item_id)
        if self._session["audio"]["input"].get("transcription") is not None:
            await self._say(
                "conversation.item.input_audio_transcription.completed",
                item_id=item_id,
                content_index=0,
                transcript="What was said",
                usage={"type": "duration", "seconds": -(-length // BYTES_PER_S)},
            )

    def _respond(self, asked: JsonObject) -> None:
        self._count += 1
        response_id = f"resp_{self._record.number}_{self._count}"
        self._responses[response_id] = asyncio.create_task(self._response(response_id, asked))

    async def _response(self, response_id: str, asked: JsonObject) -> None:
        steered = directive.resolve(self._defaults, self._texts[-1:], self._header)
        modalities = asked.get("output_modalities") or self._session["output_modalities"]
        response: JsonObject = {
            "object": "realtime.response",
            "id": response_id,
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": None if asked.get("conversation") == "none" else "conv_1",
            "output_modalities": modalities,
            "max_output_tokens": asked.get("max_output_tokens", self._session["max_output_tokens"]),
            "usage": None,
        }
        said, status, why = 0, "completed", None
        try:
            await asyncio.sleep(steered.delay_ms / 1_000)
            await self._say("response.created", response=response)
            for said in range(1, (steered.chunks or DEFAULT_WORDS) + 1):
                await self._word(response_id, WORDS[(said - 1) % len(WORDS)], spoken="audio" in modalities)
                await self._misbehave(steered.parsed_fault.name, said)
                await asyncio.sleep(steered.chunk_delay_ms / 1_000)
            if steered.parsed_fault.name == "error_event":
                status, why = "failed", {"type": "failed", "error": {"type": "server_error", "message": "It broke."}}
        except asyncio.CancelledError as reason:
            if not reason.args:
                raise
            status, why = "cancelled", {"type": "cancelled", "reason": reason.args[0]}
        except _Ended:
            return
        usage = None if steered.parsed_fault.name == "no_usage" else self._usage(steered, said, "audio" in modalities)
        del self._responses[response_id]
        await self._say("response.done", response={**response, "status": status, "status_details": why, "usage": usage})

    async def _word(self, response_id: str, word: str, *, spoken: bool) -> None:
        place = {"response_id": response_id, "item_id": "item_said", "output_index": 0, "content_index": 0}
        if spoken:
            await self._say("response.output_audio_transcript.delta", **place, delta=word)
            await self._say("response.output_audio.delta", **place, delta=SOUND_PER_WORD)
        else:
            await self._say("response.output_text.delta", **place, delta=word)

    async def _misbehave(self, fault: str, said: int) -> None:
        if said != 2:
            return
        if fault == "reset_mid_stream":
            reset(self._request, self._record)
            raise _Ended
        if fault == "truncated":
            self._record.outcome = "closed"
            await self._socket.close(code=WSCloseCode.INTERNAL_ERROR, message=b"the fake gave up")
            raise _Ended
        if fault == "stall":
            await asyncio.sleep(STALL_MAX_S)

    def _usage(self, steered: Directive, said: int, spoken: bool) -> JsonObject:
        words = sum(len(directive.strip(text).split()) for text in self._texts)
        heard = self._committed_bytes * 10 // BYTES_PER_S
        prompt = (
            steered.prompt_tokens
            if steered.prompt_tokens is not None
            else words + TOKENS_PER_ITEM * self._items + heard
        )
        sound = said * (len(SOUND_PER_WORD) * 3 // 4 * OUTPUT_TOKENS_PER_S // BYTES_PER_S) if spoken else 0
        given = steered.completion_tokens if steered.completion_tokens is not None else said + sound
        sound, heard, cached = min(sound, given), min(heard, prompt), min(steered.cached_tokens, prompt)
        cached_sound = min(heard, cached)
        return {
            "total_tokens": prompt + given,
            "input_tokens": prompt,
            "output_tokens": given,
            "input_token_details": {
                "text_tokens": prompt - heard,
                "audio_tokens": heard,
                "image_tokens": 0,
                "cached_tokens": cached,
                "cached_tokens_details": {
                    "text_tokens": cached - cached_sound,
                    "audio_tokens": cached_sound,
                    "image_tokens": 0,
                },
            },
            "output_token_details": {"text_tokens": given - sound, "audio_tokens": sound},
        }

    async def _cancel(self, response_id: str | None, why: str) -> None:
        for one, task in list(self._responses.items()):
            if response_id in (None, one):
                task.cancel(why)

    async def _fail(self, message: str, event_id: Any) -> None:
        error = {"type": "invalid_request_error", "code": "invalid_value", "message": message, "event_id": event_id}
        await self._say("error", error=error)

    async def _say(self, kind: str, **fields: Any) -> None:
        self._record.response_bytes += 1
        event = {"type": kind, "event_id": f"event_{self._record.response_bytes}", **fields}
        await self._socket.send_str(orjson.dumps(event).decode())


def _merged(known: JsonObject, changes: JsonObject) -> JsonObject:
    """`known` with `changes` put into it, object by object."""
    merged = dict(known)
    for name, value in changes.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


async def serve(request: web.Request, record: Record, defaults: Directive) -> web.StreamResponse:
    """Answer a handshake, and hold the session. FakeError where a directive asks for a refusal."""
    fault = directive.resolve(defaults, (), request.headers.get(directive.HEADER, "")).parsed_fault
    if fault.name == "status":
        raise FakeError(fault.value, f"The fake provider was asked to answer with status {fault.value}.")
    socket: web.WebSocketResponse[Any] = web.WebSocketResponse(
        protocols=("realtime",), max_msg_size=MESSAGE_MAX_BYTES, timeout=1.0
    )
    record.status = 101
    await socket.prepare(request)
    await FakeSession(socket, request, record, defaults).run()
    if record.outcome == "in_progress":
        record.outcome = "completed" if socket.close_code == WSCloseCode.OK else "disconnected"
    return socket
