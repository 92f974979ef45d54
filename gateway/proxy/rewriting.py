"""Calls to `/v1/rewrite/{format}/{url}` (`wire/rewrite.py`): which URL is meant, and the call as it is sent there."""

from __future__ import annotations

from aiohttp import hdrs, web

from gateway.errors import ObolError
from gateway.providers import Provider
from gateway.proxy.call import Call
from gateway.proxy.parts import Parts
from gateway.proxy.routing import Original, hop_at, read_body, resolved
from gateway.wire.contract import Format
from gateway.wire.dropin import route_of
from gateway.wire.rewrite import Place, Rewrite, dialect_of, rewrite_of
from gateway.wire.target import Target

CHAT = frozenset({"openai_chat", "anthropic_messages", "gemini_generate", "gemini_stream"})
"""What can be asked by this route."""
_VERBS = {"gemini_generate": "generateContent", "gemini_stream": "streamGenerateContent"}
_OWN_ROUTES = {"openai_chat": "/v1/chat/completions", "anthropic_messages": "/v1/messages"}


def place(parts: Parts, request: web.BaseRequest, call: Call) -> Rewrite:
    """Give the call its dialect, target and format. Raise ObolError."""
    call.client_dialect = dialect_of(request.raw_path)
    if request.method != "POST":
        raise ObolError("method_not_allowed", f"{request.method} is not allowed here; allowed: POST")
    rewrite = rewrite_of(request.raw_path)
    call.target, call.format = _meant(parts, rewrite)[1:]
    call.provider_name = call.target.provider.name if call.target.provider else call.target.host
    call.rewrite = rewrite
    return rewrite


def _meant(parts: Parts, rewrite: Rewrite) -> tuple[Place, Target[Provider], Format]:
    """The first place that is an endpoint for chats."""
    for meant in rewrite.places:
        try:
            where, format_ = resolved(parts, "POST", meant.line)
        except ObolError:
            if meant is rewrite.places[-1]:
                raise
            continue
        if format_.name in CHAT:
            return meant, where, format_
    raise ObolError(
        "forward_translation_not_supported",
        f"{where.origin}{where.bare_path} is no endpoint for chats, so it is not translated: use /v1/forward",
        param="url",
    )


async def read(parts: Parts, request: web.BaseRequest, call: Call, rewrite: Rewrite) -> Original:
    """Read the body, and make the call the provider's. In the client's own dialect it goes as it is.

    Raise ObolError.
    """
    body = await read_body(parts, request)
    meant, where, format_ = _meant(parts, rewrite)
    model = meant.model or "-"
    route = route_of(_OWN_ROUTES.get(rewrite.format) or f"/v1beta/models/{model}:{_VERBS[rewrite.format]}")
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    original = Original(rewrite.format, route, rewrite.query, body, content_type)
    own_key = call.principal.provider_key
    translate = format_.dialect != rewrite.dialect
    if rewrite.query and not translate:
        where, format_ = resolved(parts, "POST", f"{meant.line}?{rewrite.query}")
    call.take(await hop_at(parts, call, original, where, format_, own_key, meant.model, translate=translate))
    return original
