"""Where a call goes whose path names no target: to the provider that has its model (`billing/catalogue.py`).

The request line becomes that of a path-style target, `/v1/forward/https/<host>/<path>`, and is resolved as such.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import NamedTuple

from aiohttp import hdrs, web

from gateway.billing.catalogue import Asked
from gateway.errors import ObolError
from gateway.providers import Provider
from gateway.proxy import body as bodies
from gateway.proxy.call import Call
from gateway.proxy.charging import pricing_of
from gateway.proxy.hops import Hop
from gateway.proxy.parts import Parts
from gateway.wire import target
from gateway.wire.contract import Format, RequestFacts
from gateway.wire.dropin import Route
from gateway.wire.formats import FORMATS
from gateway.wire.model_field import member_of, with_model
from gateway.wire.target import Target

ROUTES_MAX = 4_096
ROUTE_MAX_CHARACTERS = 512
"""Of a line that is remembered: all of them together stay below some 10 MB."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""What is passed on. Not TRACE: its answer is the request, with the provider's key in it."""
MODEL_MAX_CHARACTERS = 512
TRANSLATED = "gateway.proxy.translated"
EDIT_INLINE_BYTES = 64 * 1024
"""Bodies up to this are changed on the loop (some 0.3 ms), larger ones in a thread."""


def resolved(parts: Parts, method: str, raw_path: str) -> tuple[Target[Provider], Format]:
    """Target and format of a request line. Remembered: callers ask for few, and the answer is a function of it.

    Not where the line holds a secret (`?key=`) or the caller's own metadata, and no long ones: anyone may make them up.
    """
    known = parts.routes.get((method, raw_path))
    if known is not None:
        return known
    where = target.resolve(raw_path, parts.providers)
    found = where, _format(parts, method, where)
    if where.query_key is None and where.metadata is None and len(raw_path) <= ROUTE_MAX_CHARACTERS:
        if len(parts.routes) >= ROUTES_MAX:
            parts.routes.clear()
        parts.routes[method, raw_path] = found
    return found


def _format(parts: Parts, method: str, where: Target[Provider]) -> Format:
    of = where.provider.format_of if where.provider else parts.providers.format_elsewhere
    name = of(method, where.path)
    if name not in FORMATS or method not in METHODS:
        raise ObolError(
            "forward_endpoint_not_supported",
            f"{method} {where.origin}{where.bare_path} cannot be metered, so it is not served",
            param="u",
        )
    return FORMATS[name]


async def read_body(parts: Parts, request: web.BaseRequest) -> bytes:
    """The whole body. Raise ObolError `invalid_request` where it is compressed, and as `bodies.read_whole` does."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() not in ("", "identity"):
        raise ObolError(
            "invalid_request",
            "a compressed body cannot be metered: send it without Content-Encoding",
            param="content-encoding",
        )
    return await bodies.read_whole(request, parts.settings.max_request_body_bytes)


def check_name(model: str | None) -> None:
    """Raise ObolError `forward_model_invalid` for a name that no model has."""
    if model is not None and (len(model) > MODEL_MAX_CHARACTERS or not model.isprintable()):
        raise ObolError(
            "forward_model_invalid", f"model must be at most {MODEL_MAX_CHARACTERS} printable characters", param="model"
        )


class Original(NamedTuple):
    """A call as the client sent it, whatever it becomes for a provider."""

    format_name: str
    """The wire format that the client speaks."""
    route: Route | None
    """None where the target's path is none that the gateway has itself."""
    query: str
    body: bytes
    content_type: str


async def choose(parts: Parts, request: web.BaseRequest, call: Call, route: Route, query: str) -> Original:
    """Read the body, and take the call to the provider of the model that it names. Raise ObolError."""
    body = await read_body(parts, request)
    original = Original(route.format, route, query, body, request.headers.get(hdrs.CONTENT_TYPE, ""))
    path = route.path(route.model or "") if route.api == "google" else request.raw_path.partition("?")[0]
    facts = FORMATS[route.format].read_request(body, path, query, original.content_type)
    check_name(facts.model)
    asked = asked_for(parts, call, route, facts.model or route.model)
    renamed = asked.model != (facts.model or "") or (route.model is not None and route.api != "google")
    own_key = call.principal.provider_key
    call.take(await hop_to(parts, call, original, asked, own_key, None if renamed else facts))
    return original


def asked_for(parts: Parts, call: Call, route: Route, model: str | None) -> Asked:
    """Whom to ask for a model. Raise ObolError `forward_model_not_supported`."""
    own_key = call.principal.provider_key is not None
    if model is None:
        first = parts.catalogue.first_with(route, own_key=own_key)
        found = Asked(first, "", "route") if first is not None else None
    else:
        book = pricing_of(parts, call).book
        found = parts.catalogue.find(model, book, owner=route.owner, own_key=own_key)
    if found is None:
        raise ObolError(
            "forward_model_not_supported",
            f"no provider is known to have the model {model!r}; to name one, put it before the model: openai/{model}",
            param="model",
        )
    return found


async def hop_to(
    parts: Parts, call: Call, original: Original, asked: Asked, own_key: str | None, facts: RequestFacts | None = None
) -> Hop:
    """The call at the provider asked, in the client's own format: a provider that has one is never asked in another.

    `facts`: of the body, where it goes as it is; else the model is put into it. Raise ObolError.
    """
    route = original.route
    assert route is not None
    url = parts.catalogue.url(asked.provider, route, asked.model)
    if url is None:
        await _load_translation()
        from gateway.proxy import translated

        return await translated.hop_to(parts, call, original, asked, own_key)
    line = "/v1/forward/https/" + url.removeprefix("https://")
    where, format_ = resolved(parts, "POST", f"{line}?{original.query}" if original.query else line)
    if facts is None:
        return await hop_at(parts, call, original, where, format_, own_key, asked.model or None)
    return hop_of(parts, call, where, format_, facts, original.body, own_key)


async def _load_translation() -> None:
    """Before `translated` is imported for the first time, which takes longer than the loop may stand still. Calls in
    the client's own format do not pay for it."""
    if TRANSLATED not in sys.modules:
        await asyncio.to_thread(importlib.import_module, TRANSLATED)


async def hop_at(
    parts: Parts,
    call: Call,
    original: Original,
    where: Target[Provider],
    format_: Format,
    own_key: str | None,
    model: str | None,
    *,
    translate: bool = False,
) -> Hop:
    """The call at a target, for a model: None for the one that the body names. `translate`: into the dialect of the
    target, which is not the client's. Raise ObolError."""
    if translate:
        await _load_translation()
        from gateway.proxy import translated

        return await translated.hop_at(parts, call, original, where, format_, own_key, model)
    member = member_of(format_.name)

    def read() -> tuple[bytes, RequestFacts]:
        body = original.body
        if model is not None and member is not None:
            body = with_model(body, model, member)
        return body, format_.read_request(body, where.bare_path, where.query, original.content_type)

    large = len(original.body) > EDIT_INLINE_BYTES
    body, facts = await asyncio.to_thread(read) if large else read()
    check_name(facts.model)
    return hop_of(parts, call, where, format_, facts, body, own_key)


def hop_of(
    parts: Parts,
    call: Call,
    where: Target[Provider],
    format_: Format,
    facts: RequestFacts,
    body: bytes,
    own_key: str | None,
) -> Hop:
    name = where.provider.name if where.provider else where.host
    check_served(parts, call, name, facts)
    return Hop(target=where, provider_name=name, own_key=own_key, format=format_, facts=facts, body=body)


def check_served(parts: Parts, call: Call, provider_name: str, facts: RequestFacts) -> None:
    """Raise ObolError `forward_model_not_supported` where the charge depends on a price that is not known, and
    `spend_key_not_allowed` for a model or provider that is none of the spend key's."""
    principal = call.principal
    if principal.rules is not None:
        principal.rules.check_model(provider_name, facts.model)
    pricing_of(parts, call).check_model(provider_name, facts, principal.meter, charged=principal.reserves)
