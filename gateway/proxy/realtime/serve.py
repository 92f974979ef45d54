"""A realtime session's journey, in the order it happens. A WebSocket that is none is refused before anything else."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from urllib.parse import parse_qsl

from aiohttp import hdrs, web

from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.providers import Provider
from gateway.proxy import headers
from gateway.proxy.exchange import key_for, origin_of
from gateway.proxy.http_client import HeaderPairs
from gateway.proxy.masking import masked
from gateway.proxy.parts import Parts
from gateway.proxy.realtime.calls import Asked, SessionCalls
from gateway.proxy.realtime.dial import Connected, Dialer, Refused
from gateway.proxy.realtime.responses import Responses
from gateway.proxy.realtime.session import CLOSE_S, Session
from gateway.proxy.refusal import refusal
from gateway.proxy.strict import WEBSOCKET
from gateway.wire import credential, metadata, target
from gateway.wire.openai_realtime import KEY_PROTOCOL, Conversation
from gateway.wire.target import Target

DROP_IN = "/v1/realtime"
DROP_IN_ORIGIN = "/v1/forward/https/api.openai.com"
FORWARD = re.compile(r"/(?:v1/)?forward(?=[/?]|$)")
WSS = re.compile(r"((?:[?&]u=)|(?:/forward/))wss(?=(?::|%3A)|/)", re.IGNORECASE)
"""The scheme of a WebSocket's URL, which is https to all else here."""
NAMED = re.compile(r"([?&]model=)openai(?:/|%2f)", re.IGNORECASE)
"""`provider/model`, as the other routes of our own take it."""
PROTOCOLS_MAX_BYTES = 16 * 1024
MODEL_MAX_CHARACTERS = 512
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z=/-]+")


class Realtime:
    """The sessions of a process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sessions = 0

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one WebSocket until it ends. What is refused is refused as HTTP, in OpenAI's dialect."""
        parts, merchant_id = self._parts, None
        try:
            asked = await self._admit(request)
            parts.limits.enter(asked.principal.merchant.merchant_id)
            merchant_id = asked.principal.merchant.merchant_id
            self._sessions += 1
            parts.metrics.realtime_sessions.set(self._sessions)
            return await self._connect(request, asked)
        except Refused as refused:
            return web.Response(
                status=refused.status if refused.status >= 400 else 502,
                body=refused.body,
                headers={hdrs.CONTENT_TYPE: refused.content_type, hdrs.CONNECTION: "close"},
            )
        except LedgerAway:
            why = "the ledger is not reachable; nothing was sent"
            return self._tell(ObolError("ledger_unavailable", why, retry_after_s=1))
        except ObolError as error:
            return self._tell(error)
        finally:
            if merchant_id is not None:
                parts.limits.leave(merchant_id)
                self._sessions -= 1
                parts.metrics.realtime_sessions.set(self._sessions)

    def _tell(self, error: ObolError) -> web.Response:
        self._parts.metrics.refusals.labels(error.code).inc()
        self._parts.metrics.limit_reached(error.limit)
        pairs, body = refusal(error, "openai")
        told = {name.decode(): value.decode() for name, value in pairs if name != b"content-length"}
        return web.Response(status=error.status, body=body, headers={**told, hdrs.CONNECTION: "close"})

    async def _admit(self, request: web.BaseRequest) -> Asked:
        """Who asks for what. Raise ObolError where it cannot be served."""
        parts = self._parts
        where = _target(parts, request.raw_path)
        _check_handshake(request)
        offered = _protocols(request)
        key = next((name for name in offered if name.startswith(KEY_PROTOCOL)), "").removeprefix(KEY_PROTOCOL)
        text = credential.find(request.headers.get, where.query_key or key or None)
        principal = await parts.principals.principal(text)
        if principal.rules is not None:
            principal.rules.check_usable(time.time_ns() // 1_000 + principal.merchant.clock_offset_us)
            principal.rules.check_shape("openai")
        if parts.draining:
            raise ObolError("shutting_down", "this gateway is shutting down; connect again", retry_after_s=1)
        if self._sessions >= parts.settings.realtime_sessions_max:
            raise ObolError(
                "too_many_requests",
                f"this gateway has {self._sessions} realtime sessions, which is as many as it may",
                retry_after_s=1,
                limit="realtime_sessions_max",
            )
        pairs = metadata.parse(request.headers.items(), where.metadata)
        metadata.check_size(pairs, parts.settings.max_metadata_bytes)
        return Asked(
            target=where,
            principal=principal,
            model=_model(where.query),
            credential=text.rstrip("=").encode(),
            metadata=pairs,
            protocols=tuple(name for name in offered if not name.startswith(KEY_PROTOCOL)),
        )

    async def _connect(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        """Hold for the first response, connect to the provider, switch protocols, and run the session."""
        parts, calls = self._parts, SessionCalls(self._parts, asked)
        if asked.model:
            calls.check_responses(asked.model)
        responses = Responses(calls, Conversation())
        managed = None if asked.principal.provider_key else key_for(parts, asked.principal.merchant, asked.target)
        try:
            await responses.ready()
            connected = await self._dial(request, asked, managed)
            try:
                client = web.WebSocketResponse(
                    timeout=CLOSE_S,
                    autoclose=False,
                    autoping=False,
                    protocols=(connected.socket.protocol,) if connected.socket.protocol else (),
                    compress=False,
                    max_msg_size=parts.settings.realtime_max_message_bytes,
                    decode_text=False,
                )
                await client.prepare(request)
                secret = managed.encode() if managed else b""
                await Session(calls, client, connected.socket, responses, secret=secret).run()
                return client
            finally:
                with suppress(Exception):
                    await connected.socket.close()
                await connected.session.close()
        finally:
            responses.release()

    async def _dial(self, request: web.BaseRequest, asked: Asked, managed: str | None) -> Connected:
        where, parts = asked.target, self._parts
        origin = origin_of(parts, where)
        sent = headers.to_provider(
            request.raw_headers, where.provider, asked.principal.provider_key or managed, compressed=False
        )
        connect_timeout_s = parts.settings.upstream_connect_timeout_ms / 1000
        dialer = Dialer(parts.upstream.resolver, parts.upstream.tls, connect_timeout_s=connect_timeout_s)
        try:
            return await dialer.connect(
                origin,
                where.path,
                _without_handshake(sent),
                asked.protocols,
                withheld=asked.credential,
                max_message_bytes=parts.settings.realtime_max_message_bytes,
            )
        except Refused as refused:
            if managed:
                refused.body = masked(refused.body, managed.encode())
            raise


def wants_websocket(request: web.BaseRequest) -> bool:
    """The request is to become a WebSocket. (The listener lets no other upgrade through.)"""
    if request.method != hdrs.METH_GET or hdrs.UPGRADE not in request.headers:
        return False
    asked = request.headers.get(hdrs.CONNECTION, "").lower()
    return request.headers[hdrs.UPGRADE].lower() == WEBSOCKET and "upgrade" in asked


def _target(parts: Parts, raw_path: str) -> Target[Provider]:
    """Raise ObolError for a WebSocket at any place that does not speak the protocol."""
    if FORWARD.match(raw_path):
        raw_path = WSS.sub(r"\1https", raw_path, count=1)
    elif raw_path.partition("?")[0] == DROP_IN:
        raw_path = DROP_IN_ORIGIN + NAMED.sub(r"\1", raw_path, count=1)
    else:
        raise ObolError("invalid_request", f"there is no WebSocket here but OpenAI's realtime API, at {DROP_IN}")
    where = target.resolve(raw_path, parts.providers)
    if where.provider is None or where.bare_path not in where.provider.realtime_paths:
        why = f"a WebSocket at {where.origin}{where.bare_path} cannot be metered, so it is not served"
        raise ObolError("invalid_request", why, param="u")
    return where


def _check_handshake(request: web.BaseRequest) -> None:
    """Raise ObolError where the client's is none."""
    try:
        ready = web.WebSocketResponse().can_prepare(request)
    except web.HTTPBadRequest:
        ready = None
    if not ready:
        raise ObolError("invalid_request", "this is no handshake of a WebSocket of version 13", param="upgrade")


def _protocols(request: web.BaseRequest) -> list[str]:
    text = ",".join(request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ()))
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(text) > PROTOCOLS_MAX_BYTES or not all(map(_TOKEN.fullmatch, names)):
        raise ObolError("invalid_request", "the subprotocols are not tokens", param="sec-websocket-protocol")
    return names


def _model(query: str) -> str:
    """The model that the session names; "" for one that only transcribes. Raise ObolError where there is none."""
    parameters = parse_qsl(query, keep_blank_values=True)
    models = [value for name, value in parameters if name == "model"]
    if not models and ("intent", "transcription") in parameters:
        return ""
    if len(models) != 1 or not models[0].isprintable() or not 0 < len(models[0]) <= MODEL_MAX_CHARACTERS:
        raise ObolError("forward_model_invalid", "a realtime session names one model: ?model=...", param="model")
    return models[0]


def _without_handshake(pairs: HeaderPairs) -> HeaderPairs:
    """The handshake with the provider is our own."""
    return [pair for pair in pairs if not pair[0].lower().startswith(b"sec-websocket-")]
