"""A stand-in for Stripe's API, with its idempotency keys and its ways to fail, for the official library to talk to.

A key keeps the first answer that was made after the request began to be executed, errors and 500s too; validation
errors and conflicts are not kept. The same key with another body is 400 `idempotency_error`, one that is being executed
is 409.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qsl

from aiohttp import web
from stripe_objects import Objects, Record, Refused, invalid

KEY = "sk_test_fakefakefake"
WEBHOOK_SECRET = "whsec_fakefakefake"

How = Literal["busy", "fail_before", "fail_after", "lost_before", "lost_after", "late", "slow", "garbage", "cut"]
"""busy: 429. fail_*: 500, kept by the key, nothing or everything done. lost_*: the connection ends without an answer.
late: done, and answered when `release` is set. slow: begun, and done when `release` is set. garbage: done, and answered
with what is no JSON. cut: done, and the answer ends in its middle."""


@dataclass
class Fault:
    how: How
    release: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Saved:
    """A key's first request. `answer`: None while it is executed."""

    fingerprint: str
    answer: tuple[int, bytes] | None = None


ALLOWED = {
    "customers": {"metadata", "email", "name", "phone"},
    "setup_intents": {"customer", "usage", "payment_method_types", "metadata"},
    "refunds": {"payment_intent", "amount", "metadata"},
    "payment_intents": {
        "amount",
        "currency",
        "customer",
        "payment_method",
        "payment_method_types",
        "confirm",
        "description",
        "metadata",
        "off_session",
        "use_stripe_sdk",
    },
}


class StripeFake:
    """`async with StripeFake() as stripe`: then it listens at `stripe.url`, with `stripe.objects` to look into."""

    def __init__(self) -> None:
        self.objects = Objects()
        self.requests: list[str] = []
        self.keys: dict[str, Saved] = {}
        self.faults: dict[str, deque[Fault]] = {}
        self.url = ""

    async def __aenter__(self) -> StripeFake:
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def next(self, how: How, operation: str = "POST payment_intents") -> Fault:
        """The next request of `operation` goes wrong."""
        fault = Fault(how)
        self.faults.setdefault(operation, deque()).append(fault)
        return fault

    def charged_cents(self, charge_id: str) -> list[int]:
        """The amounts that were paid for `charge_id`: at most one, or a customer was charged twice."""
        paid = [one for one in self.objects.of("charge") if one["metadata"].get("charge_id") == charge_id]
        return [one["amount"] for one in paid]

    def forget_keys(self) -> None:
        """A day goes by."""
        self.keys.clear()

    def signed(
        self, event: Record, *, secret: str = WEBHOOK_SECRET, at: float | None = None
    ) -> tuple[bytes, dict[str, str]]:
        """Body and headers of a webhook."""
        body = json.dumps(event).encode()
        stamp = int(time.time() if at is None else at)
        tag = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        return body, {"Stripe-Signature": f"t={stamp},v1={tag}", "Content-Type": "application/json"}

    # HTTP

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        operation = f"{request.method} {re.sub(r'/[a-z]+_[0-9]+', '/:id', path)}"
        self.requests.append(operation)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            message = f"Invalid API Key provided: {request.headers.get('Authorization', '')[7:]}"
            return _json(401, {"error": {"type": "invalid_request_error", "message": message}})
        waiting = self.faults.get(operation)
        fault = waiting.popleft() if waiting else None
        if fault and fault.how == "busy":
            return _json(
                429, {"error": {"type": "invalid_request_error", "code": "rate_limit", "message": "slow down"}}
            )
        if fault and fault.how == "lost_before":
            return _hang_up(request)
        form = _form((await request.text()) or request.query_string)
        if request.method != "POST":
            status, body = self._answer(lambda: self._get(path, form))
        else:
            status, body = await self._once(request.headers.get("Idempotency-Key", ""), path, form, fault)
        return await self._sent(request, status, body, fault)

    async def _once(self, key: str, path: str, form: Record, fault: Fault | None) -> tuple[int, bytes]:
        fingerprint = json.dumps([path, form], sort_keys=True)
        saved = self.keys.get(key)
        if saved is not None and saved.fingerprint != fingerprint:
            message = (
                "Keys for idempotent requests can only be used with the same parameters they were first used with."
            )
            return 400, _error("idempotency_error", message)
        if saved is not None:
            message = "There is currently another in-progress request using this Idempotent Key"
            return saved.answer or (409, _error("idempotency_error", message, code="idempotency_key_in_use"))
        self.keys[key] = saved = Saved(fingerprint)
        if fault and fault.how == "slow":
            await fault.release.wait()
        kept, saved.answer = self._executed(path, form, fault)
        if not kept:
            del self.keys[key]
        return saved.answer

    def _executed(self, path: str, form: Record, fault: Fault | None) -> tuple[bool, tuple[int, bytes]]:
        """Whether the key keeps the answer, and the answer."""
        wrong = _unknown(path, form)
        if wrong is not None:
            return False, (wrong.status, json.dumps(wrong.body).encode())
        if fault and fault.how == "fail_before":
            return True, (500, _error("api_error", "An unknown error occurred"))
        answer = self._answer(lambda: self._post(path, form))
        if fault and fault.how == "fail_after":
            return True, (500, _error("api_error", "An unknown error occurred"))
        return True, answer

    def _answer(self, made: Callable[[], Any]) -> tuple[int, bytes]:
        try:
            return 200, json.dumps(made()).encode()
        except Refused as refused:
            return refused.status, json.dumps(refused.body).encode()

    async def _sent(self, request: web.Request, status: int, body: bytes, fault: Fault | None) -> web.StreamResponse:
        how = fault.how if fault else None
        if fault and how == "late":
            await fault.release.wait()
        if how == "lost_after":
            return _hang_up(request)
        if how == "garbage":
            body = b"<html>bad gateway</html>"
        if how == "cut":
            response = web.StreamResponse(headers={"Content-Length": str(len(body)), "Request-Id": "req_fake"})
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
            return _hang_up(request, response)
        headers = {"Request-Id": "req_fake"}
        return web.Response(status=status, body=body, content_type="application/json", headers=headers)

    # Operations

    def _post(self, path: str, form: Record) -> Record:
        objects = self.objects
        match path.split("/"):
            case ["customers"]:
                return objects.create_customer(**form)
            case ["customers", ref]:
                return objects.update_customer(ref, **form)
            case ["setup_intents"]:
                return objects.create_setup(**form)
            case ["payment_intents"]:
                return objects.create_intent(**_typed(form))
            case ["payment_intents", ref, "cancel"]:
                return objects.cancel(ref)
            case ["payment_methods", ref, "detach"]:
                return objects.detach(ref)
            case ["refunds"]:
                return objects.create_refund(**_typed(form))
        raise invalid(f"Unrecognized request URL (POST: /v1/{path})", status=404)

    def _get(self, path: str, form: Record) -> Record:
        kinds = {"payment_intents": "payment_intent", "setup_intents": "setup_intent", "refunds": "refund"}
        kinds |= {"payment_methods": "payment_method", "customers": "customer"}
        match path.split("/"):
            case [name] if name in kinds:
                return self._page(kinds[name], name, form)
            case [name, ref] if name in kinds:
                record = self.objects.get(kinds[name], ref)
                for field_name in form.get("expand", {}).values():
                    record = record | {field_name: self.objects.kept.get(record[field_name])}
                return record
        raise invalid(f"Unrecognized request URL (GET: /v1/{path})", status=404)

    def _page(self, kind: str, name: str, form: Record) -> Record:
        found = self.objects.of(kind)
        since = int(form.get("created", {}).get("gte", 0))
        wanted = {field_name: form[field_name] for field_name in ("customer", "payment_intent") if field_name in form}
        found = [one for one in found if wanted.items() <= one.items() and one["created"] >= since]
        if after := form.get("starting_after"):
            found = found[[one["id"] for one in found].index(after) + 1 :]
        limit = int(form.get("limit", 10))
        return {"object": "list", "url": f"/v1/{name}", "has_more": len(found) > limit, "data": found[:limit]}


def _unknown(path: str, form: Record) -> Refused | None:
    allowed = ALLOWED.get(path)
    extra = set(form) - allowed if allowed else set()
    if not extra:
        return None
    name = min(extra)
    return invalid(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)


def _form(text: str) -> Record:
    """`a[b]=c` as {"a": {"b": "c"}}."""
    form: Record = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        first, *rest = re.findall(r"[^\[\]]+", name)
        if rest:
            form.setdefault(first, {})[rest[0]] = value
        else:
            form[first] = value
    return form


def _typed(form: Record) -> Record:
    typed: Record = {"metadata": {}, "currency": "usd"} | form
    typed["amount"] = int(typed["amount"])
    for name in ("confirm", "off_session", "use_stripe_sdk"):
        if name in typed:
            typed[name] = typed[name] == "true"
    return typed


def _error(kind: str, message: str, **more: str) -> bytes:
    return json.dumps({"error": {"type": kind, "message": message, **more}}).encode()


def _json(status: int, body: Record) -> web.Response:
    return web.json_response(body, status=status, headers={"Request-Id": "req_fake"})


def _hang_up(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return response or web.Response()
