"""The fake's HTTP server: reads, routes by path, records, answers.

GET    /_fake/requests[?limit=N]    what was seen (see records.py)
DELETE /_fake/requests              forget it
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import replace

import orjson
from aiohttp import web

from gateway.local.fake import anthropic, chat, cohere, completions, directive, gemini, media, realtime, responses
from gateway.local.fake.answer import compose
from gateway.local.fake.call import Call, FakeError
from gateway.local.fake.directive import Directive
from gateway.local.fake.records import RECORDS_MAX, Record, RequestLog
from gateway.local.fake.replay import Recordings, replay
from gateway.local.fake.reply import Dialect, Format, Reply, error_reply
from gateway.local.fake.sending import send

CONTROL_PATH = "/_fake/requests"
REALTIME_PATH = "/realtime"
REQUEST_BODY_MAX_BYTES = 64 * 1024 * 1024
HEADER_MAX_BYTES = 64 * 1024
SHUTDOWN_TIMEOUT_S = 1.0
RETRY_AFTER_S = 1
_TELLS_WHEN_TO_RETRY = frozenset({429, 503, 529})

ROUTES: tuple[tuple[str, re.Pattern[str], Format], ...] = tuple(
    (method, re.compile(f"{pattern}$"), wire_format)
    for method, pattern, wire_format in (
        ("POST", r"/chat/completions", chat.FORMAT),
        ("POST", r"/v2/chat", cohere.FORMAT),
        ("POST", r"/completions", completions.FORMAT),
        ("POST", r"/responses", responses.FORMAT),
        ("POST", r"/messages", anthropic.MESSAGES),
        ("POST", r"/messages/count_tokens", anthropic.COUNT_TOKENS),
        ("POST", r"/models/(?P<model>[^/]+):(?P<method>generateContent|streamGenerateContent)", gemini.GENERATE),
        ("POST", r"/models/(?P<model>[^/]+):(?P<method>countTokens)", gemini.COUNT_TOKENS),
        ("POST", r"/models/(?P<model>[^/]+):(?P<method>embedContent|batchEmbedContents)", gemini.EMBED),
        ("POST", r"/embeddings", media.EMBEDDINGS),
        ("POST", r"/audio/(transcriptions|translations)", media.TRANSCRIPTION),
        ("POST", r"/audio/speech", media.SPEECH),
        ("POST", r"/images/(generations|edits)", media.IMAGE),
        ("POST", r"/moderations", media.MODERATION),
        ("POST", r"/files", media.UPLOAD),
        ("GET", r"/files", media.FILE_LIST),
        ("GET", r"/models", media.MODEL_LIST),
    )
)


class FakeServer:
    """One fake: its defaults, its log and, when it replays, its recordings."""

    def __init__(self, defaults: Directive | None = None, recordings: Recordings | None = None) -> None:
        self.defaults = defaults or Directive()
        self.recordings = recordings
        self.log = RequestLog()

    def runner(self) -> web.AppRunner:
        """A runner to set up and to give a site. It cancels a handler whose client has gone, which the log notes."""
        application = web.Application(client_max_size=REQUEST_BODY_MAX_BYTES)
        application.router.add_get(CONTROL_PATH, self._show_log)
        application.router.add_delete(CONTROL_PATH, self._clear_log)
        application.router.add_route("*", "/{path:.*}", self._answer)
        return web.AppRunner(
            application,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            auto_decompress=False,
            max_line_size=HEADER_MAX_BYTES,
            max_field_size=HEADER_MAX_BYTES,
        )

    async def _show_log(self, request: web.Request) -> web.Response:
        limit = request.query.get("limit", str(RECORDS_MAX))
        if not limit.isdecimal() or int(limit) < 1:
            raise web.HTTPBadRequest(text=f"limit: {limit!r} is not a number of at least 1\n")
        return web.Response(body=orjson.dumps(self.log.as_json(int(limit))), content_type="application/json")

    async def _clear_log(self, _: web.Request) -> web.Response:
        self.log.clear()
        return web.Response(status=204)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers]
        record = self.log.open(request.method, request.raw_path, request.host, headers)
        try:
            if request.path.endswith(REALTIME_PATH) and "upgrade" in request.headers.get("connection", "").lower():
                return await self._realtime(request, record)
            body = await request.read()
            await record.take_body(body)
            if self.recordings is not None:
                return await self._replay(request, self.recordings, record)
            return await self._compose(request, body, record)
        except asyncio.CancelledError:
            record.outcome = "disconnected"
            raise
        except ConnectionError:
            record.outcome = "disconnected"
            return web.Response()

    async def _realtime(self, request: web.Request, record: Record) -> web.StreamResponse:
        try:
            return await realtime.serve(request, record, self.defaults)
        except FakeError as error:
            return await send(request, error_reply("openai", error, record.body_sha256), Directive(), record)

    async def _replay(self, request: web.Request, recordings: Recordings, record: Record) -> web.StreamResponse:
        try:
            return await replay(request, recordings, record)
        except FakeError as error:
            return await send(request, error_reply("openai", error, record.body_sha256), Directive(), record)

    async def _compose(self, request: web.Request, body: bytes, record: Record) -> web.StreamResponse:
        call = _call(request, body, record)
        chosen: Dialect = "openai"
        asked = Directive()
        try:
            wire_format, call = _route(call)
            chosen = wire_format.dialect
            asked, reply = self._render(wire_format, call)
        except FakeError as error:
            reply = error_reply(chosen, error, call.fingerprint)
        return await send(request, _with_headers(reply, chosen, call), asked, record)

    def _render(self, wire_format: Format, call: Call) -> tuple[Directive, Reply]:
        prompt = wire_format.read(call)
        header = call.headers.get(directive.HEADER, "")
        asked = directive.resolve(self.defaults, prompt.user_texts, header)
        fault = asked.parsed_fault
        if fault.name == "status":
            refusal = FakeError(fault.value, f"The fake provider was asked to answer with status {fault.value}.")
            return asked, error_reply(wire_format.dialect, refusal, call.fingerprint)
        return asked, wire_format.render(compose(prompt, asked))


def _call(request: web.Request, body: bytes, record: Record) -> Call:
    identity = f"{request.method} {request.path} {record.body_sha256}"
    return Call(
        method=request.method,
        path=request.path,
        query=request.query,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=body,
        fingerprint=hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest(),
    )


def _route(call: Call) -> tuple[Format, Call]:
    """The format for the call's path, and the call with what the path says. FakeError 404 if there is none."""
    for method, pattern, wire_format in ROUTES:
        found = pattern.search(call.path) if method == call.method else None
        if found:
            return wire_format, replace(call, path_values=found.groupdict())
    raise FakeError(404, f"Invalid URL ({call.method} {call.path})")


def _with_headers(reply: Reply, dialect: Dialect, call: Call) -> Reply:
    headers = dict(reply.headers)
    if dialect == "openai":
        headers |= {"x-request-id": f"req_{call.fingerprint[:32]}", "openai-processing-ms": "12"}
    elif dialect == "anthropic":
        headers["request-id"] = f"req_{call.fingerprint[:24]}"
    if reply.status in _TELLS_WHEN_TO_RETRY:
        headers["retry-after"] = str(RETRY_AFTER_S)
    return replace(reply, headers=headers)
