"""Before anything is held: who asks for what, and whether it can be served at all."""

from __future__ import annotations

import hashlib

from aiohttp import hdrs, web

from gateway.billing.spend_keys import Rules
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.keys import shard_of
from gateway.providers import HTTP
from gateway.proxy import body as bodies
from gateway.proxy import fallbacks, rewriting
from gateway.proxy.call import Call
from gateway.proxy.parts import Parts
from gateway.proxy.routing import check_name, check_served, choose, read_body, resolved
from gateway.wire import credential, metadata, rewrite
from gateway.wire.dropin import Route, gateway_query
from gateway.wire.formats import FORMATS
from gateway.wire.plain import UNREAD, http_facts

IDEMPOTENCY_HEADER = "idempotency-key"
IDEMPOTENCY_KEY_MAX_CHARACTERS = 255


async def admit(parts: Parts, request: web.BaseRequest, call: Call, route: Route | None) -> None:
    """Read the request as far as billing needs it. Raise ObolError where it cannot be served."""
    query, query_key, tags = _take_line(parts, request, call, route)
    text = credential.find(request.headers.get, query_key)
    call.principal = await parts.principals.principal(text)
    call.credential = text.rstrip("=").encode()
    call.own_key = call.principal.provider_key
    if call.principal.rules is not None:
        _check_spend_key(call, call.principal.rules)
    parts.limits.enter(call.principal.merchant.merchant_id)
    call.counted = True
    if route is None and call.target.provider is None and call.own_key is None:
        raise ObolError("forward_endpoint_not_supported", f"{call.target.host} is no supported provider", param="u")
    call.metadata = metadata.parse(request.headers.items(), tags)
    if call.metadata:
        metadata.check_size(call.metadata, parts.settings.max_metadata_bytes)
    original = None
    if route is not None:
        original = await choose(parts, request, call, route, query)
    elif call.rewrite is not None:
        original = await rewriting.read(parts, request, call, call.rewrite)
    else:
        await _read(parts, request, call)
    chain = request.headers.get(fallbacks.HEADER)
    if chain:
        call.fallbacks = await fallbacks.chain(parts, call, original or fallbacks.sent_by(call, request), chain)
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key and request.method == "POST":
        await _claim(parts, call, text, key)


def _check_spend_key(call: Call, rules: Rules) -> None:
    """Raise ObolError where the key may not be used now, or not for a request of this shape."""
    rules.check_usable(call.created_us + call.principal.merchant.clock_offset_us)
    if call.client_dialect is not None or call.format.name not in UNREAD:
        rules.check_shape(call.dialect)


def _take_line(
    parts: Parts, request: web.BaseRequest, call: Call, route: Route | None
) -> tuple[str, str | None, str | None]:
    """What the request line says: target and format, else only the dialect; the rest of the query, the credential and
    the metadata in it."""
    if route is None and request.raw_path.startswith(rewrite.PREFIX):
        said = rewriting.place(parts, request, call)
        return said.query, said.query_key, said.metadata
    if route is None:
        # A target spoken of by path names its dialect, so that every later error is told in it.
        call.target, call.format = where, _ = resolved(parts, request.method, request.raw_path)
        call.provider_name = where.provider.name if where.provider else where.host
        return where.query, where.query_key, where.metadata
    call.client_dialect = FORMATS[route.format].dialect
    if request.method != "POST":
        raise ObolError("method_not_allowed", f"{request.method} is not allowed here; allowed: POST")
    return gateway_query(request.raw_path.partition("?")[2], route)


async def _read(parts: Parts, request: web.BaseRequest, call: Call) -> None:
    """The body whole and its facts where the format is metered; else only its declared length."""
    if call.format.name in UNREAD:
        length = bodies.declared_length(request, parts.settings.max_request_body_bytes)
        if call.format.name == HTTP:
            call.facts = http_facts(call.target.bare_path, length if request.body_exists else 0)
            check_served(parts, call, call.provider_name, call.facts)
        elif call.principal.rules is not None:
            call.principal.rules.check_model(call.provider_name, None)
        return
    call.body = await read_body(parts, request)
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    call.facts = call.format.read_request(call.body, call.target.bare_path, call.target.query, content_type)
    check_name(call.facts.model)
    check_served(parts, call, call.provider_name, call.facts)


async def _claim(parts: Parts, call: Call, credential_text: str, key: str) -> None:
    """One call for each idempotency key of a merchant: refused while the first runs, and once it was billed."""
    if len(key) > IDEMPOTENCY_KEY_MAX_CHARACTERS:
        raise ObolError("invalid_request", "Idempotency-Key is too long", param=IDEMPOTENCY_HEADER)
    asked = (credential_text.encode(), call.target.origin.encode(), call.target.path.encode(), call.body)
    fingerprint = hashlib.sha256(b"\0".join(asked)).hexdigest()
    name, merchant_id = f"key:{key}", call.principal.merchant.merchant_id
    call.claim_shard = shard_of(f"{merchant_id}:{name}", parts.settings.ledger_shards)
    call.claim = name  # from here on it may be ours, whatever the answer
    try:
        claim = await parts.wallets.claim(
            call.claim_shard, merchant_id, name, fingerprint, call.request_id, ttl_s=parts.claim_ttl_s
        )
    except LedgerAway as away:
        call.claim = name if away.sent else None
        raise
    if claim.kind == "claimed" or claim.holder == call.request_id:
        return
    call.claim = None
    if claim.kind == "conflict":
        code, why = "request_id_conflict", "this Idempotency-Key was used for a different request"
    elif claim.done:
        code, why = "request_already_made", "the call with this Idempotency-Key was made and billed"
    else:
        code, why = "request_in_progress", "the call with this Idempotency-Key is under way"
    raise ObolError(
        code,
        why,
        param=IDEMPOTENCY_HEADER,
        retry_after_s=1 if code == "request_in_progress" else None,
        details={"original_request_id": claim.holder},
    )
