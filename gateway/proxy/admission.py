"""Before anything is held: who asks for what, and whether it can be served at all."""

from __future__ import annotations

import hashlib

from aiohttp import hdrs, web

from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.keys import shard_of
from gateway.providers import HTTP, Provider
from gateway.proxy import body as bodies
from gateway.proxy.call import Call
from gateway.proxy.parts import Parts
from gateway.wire import credential, metadata, target
from gateway.wire.contract import Format
from gateway.wire.formats import FORMATS
from gateway.wire.plain import UNREAD, http_facts
from gateway.wire.target import Target

ROUTES_MAX = 4_096
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""What is passed on. Not TRACE: its answer is the request, with the provider's key in it."""
MODEL_MAX_CHARACTERS = 512
IDEMPOTENCY_HEADER = "idempotency-key"
IDEMPOTENCY_KEY_MAX_CHARACTERS = 255


async def admit(parts: Parts, request: web.BaseRequest, call: Call) -> None:
    """Read the request as far as billing needs it. Raise ObolError where it cannot be served."""
    # A target spoken of by path names its dialect, so that every later error is told in it.
    call.target, call.format = _route(parts, request.method, request.raw_path)
    provider = call.target.provider
    call.provider_name = provider.name if provider else call.target.host
    text = credential.find(request.headers.get, call.target.query_key)
    call.principal = await parts.principals.principal(text)
    call.credential = text.rstrip("=").encode()
    parts.limits.enter(call.principal.merchant.merchant_id)
    call.counted = True
    if provider is None and call.principal.provider_key is None:
        raise ObolError("forward_endpoint_not_supported", f"{call.target.host} is no supported provider", param="u")
    call.metadata = metadata.parse(request.headers.items(), call.target.metadata)
    if call.metadata:
        metadata.check_size(call.metadata, parts.settings.max_metadata_bytes)
    await _read(parts, request, call)
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key and request.method == "POST":
        await _claim(parts, call, text, key)


def _route(parts: Parts, method: str, raw_path: str) -> tuple[Target[Provider], Format]:
    """Target and format of a request line. Remembered: callers ask for few, and the answer is a function of it.

    Not where the line holds a secret (`?key=`) or the caller's own metadata.
    """
    known = parts.routes.get((method, raw_path))
    if known is not None:
        return known
    where = target.resolve(raw_path, parts.providers)
    found = where, _format(parts, method, where)
    if where.query_key is None and where.metadata is None:
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


async def _read(parts: Parts, request: web.BaseRequest, call: Call) -> None:
    """The body whole and its facts where the format is metered; else only its declared length."""
    limit_bytes = parts.settings.max_request_body_bytes
    if call.format.name in UNREAD:
        length = bodies.declared_length(request, limit_bytes)
        if call.format.name == HTTP:
            call.facts = http_facts(call.target.bare_path, length if request.body_exists else 0)
            _check_model(parts, call)
        return
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() not in ("", "identity"):
        raise ObolError(
            "invalid_request",
            "a compressed body cannot be metered: send it without Content-Encoding",
            param="content-encoding",
        )
    call.body = await bodies.read_whole(request, limit_bytes)
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    call.facts = call.format.read_request(call.body, call.target.bare_path, call.target.query, content_type)
    model = call.facts.model
    if model is not None and (len(model) > MODEL_MAX_CHARACTERS or not model.isprintable()):
        raise ObolError(
            "forward_model_invalid", f"model must be at most {MODEL_MAX_CHARACTERS} printable characters", param="model"
        )
    _check_model(parts, call)


def _check_model(parts: Parts, call: Call) -> None:
    principal = call.principal
    parts.pricing.check_model(call.provider_name, call.facts, principal.meter, charged=principal.charged)


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
