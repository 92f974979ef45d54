"""The header `x-lava-fallbacks`: where a call goes next when its provider fails (`exchange.first_answer`).

A JSON array of names, `"provider/model"` or a model that is found as on the gateway's own routes, and of objects
`{"url": "api.openai.com/v1/chat/completions", "model": "gpt-4o-mini"}`; without `model` the one asked for. All of
it is checked before the first provider is asked, so that a chain never breaks on a mistake of its own.
"""

from __future__ import annotations

import msgspec
from aiohttp import hdrs, web

from gateway.errors import ObolError
from gateway.providers import Provider
from gateway.proxy.call import Call
from gateway.proxy.exchange import key_for
from gateway.proxy.hops import Hop
from gateway.proxy.parts import Parts
from gateway.proxy.routing import Original, asked_for, check_name, hop_at, hop_to, resolved
from gateway.wire.dropin import route_at
from gateway.wire.plain import UNREAD
from gateway.wire.target import Target

HEADER = "x-lava-fallbacks"
FALLBACKS_MAX = 4
HEADER_MAX_CHARACTERS = 4_096
EXAMPLE = """["groq/llama-3.3-70b-versatile", {"url": "api.openai.com/v1/chat/completions", "model": "gpt-4o-mini"}]"""


class _Place(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    model: str | None = None


_DECODER = msgspec.json.Decoder(list[str | _Place])


def sent_by(call: Call, request: web.BaseRequest) -> Original:
    """A call to a target that the client named itself."""
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    route = route_at(call.target.bare_path)
    return Original(call.format.name, route, call.target.query, call.body, content_type)


async def chain(parts: Parts, call: Call, original: Original, text: str) -> tuple[Hop, ...]:
    """The hops that the header's text names, in order. Raise ObolError naming the header and the entry at fault."""
    if call.method != "POST" or call.format.name in UNREAD:
        raise _invalid("is for calls that are metered: this one has no model")
    hops, bytes_max = list[Hop](), parts.settings.max_request_body_bytes
    for number, entry in enumerate(_entries(text)):
        try:
            hops.append(await _hop(parts, call, original, entry))
        except ObolError as error:
            raise ObolError(error.code, f"{HEADER}[{number}]: {error.message}", param=HEADER) from None
        if sum(len(hop.body) for hop in hops) > bytes_max:  # each has a body of its own, for as long as the call takes
            why = f"{HEADER}[{number}]: the bodies of all fallbacks together exceed {bytes_max} bytes"
            raise ObolError("body_too_large", why, param=HEADER, limit="max_request_body_bytes")
    return tuple(hops)


def _entries(text: str) -> list[str | _Place]:
    if len(text) > HEADER_MAX_CHARACTERS:
        raise _invalid(f"is longer than {HEADER_MAX_CHARACTERS} characters")
    try:
        entries = _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise _invalid(f"is not a JSON array such as {EXAMPLE}: {error}") from None
    if len(entries) > FALLBACKS_MAX:
        raise _invalid(f"has more than {FALLBACKS_MAX} entries")
    return entries


def _invalid(what: str) -> ObolError:
    return ObolError("invalid_request", f"{HEADER} {what}", param=HEADER)


async def _hop(parts: Parts, call: Call, original: Original, entry: str | _Place) -> Hop:
    if isinstance(entry, str):
        return await _named(parts, call, original, entry)
    where, format_ = resolved(parts, "POST", "/v1/forward/https/" + entry.url.removeprefix("https://"))
    own_key = _own_key(parts, call, where)
    model = entry.model or call.facts.model
    translate = format_.name != original.format_name
    hop = await hop_at(parts, call, original, where, format_, own_key, model, translate=translate)
    if entry.model not in (None, hop.facts.model):
        raise ObolError("forward_model_invalid", f"model is {entry.model!r}, but the url names {hop.facts.model!r}")
    return hop


async def _named(parts: Parts, call: Call, original: Original, name: str) -> Hop:
    if original.route is None or original.route.format != original.format_name:
        raise ObolError("invalid_request", "for this endpoint a fallback has to be an object with a url")
    check_name(name)
    asked = asked_for(parts, call, original.route, name)
    if call.target.provider is None:  # a host of the caller's own: there may be a secret in its query
        original = original._replace(query="alt=sse" if "alt=sse" in original.query.split("&") else "")
    hop = await hop_to(parts, call, original, asked, None)
    own_key = _own_key(parts, call, hop.target)
    return msgspec.structs.replace(hop, own_key=own_key)


def _own_key(parts: Parts, call: Call, where: Target[Provider]) -> str | None:
    """The caller's own key where it is for this provider: the one that the call goes to first.

    Raise ObolError where neither it nor one of the installation's can be used.
    """
    first = call.target
    origins = first.provider.origins if first.provider is not None else (first.origin,)
    if call.own_key is not None and where.origin in origins:
        return call.own_key
    if where.provider is None:
        raise ObolError("forward_endpoint_not_supported", f"{where.host} is no supported provider")
    key_for(parts, call.principal.merchant, where)
    return None
