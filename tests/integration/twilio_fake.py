"""A stand-in for Twilio Verify (v2): it makes codes, counts sends and checks, and forgets a code that was right."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from aiohttp import web

ACCOUNT, TOKEN, SERVICE = "AC" + "0" * 32, "twilio0token0secret", "VA" + "1" * 32
SENDS_MAX = CHECKS_MAX = 5
REFUSED = {"+15550100001": (403, 60205), "+15550100002": (400, 60200), "+15550100003": (403, 60410)}


@dataclass
class Verification:
    code: str
    sends: int = 0
    checks: int = 0


class TwilioFake:
    """`async with TwilioFake() as twilio`: then it listens at `twilio.url`. `broken`: what it answers instead."""

    def __init__(self) -> None:
        self.awaited: dict[str, Verification] = {}
        self.texts: list[tuple[str, str]] = []
        self.requests = 0
        self.broken: Callable[[], web.Response] | None = None
        self.url = ""

    async def __aenter__(self) -> TwilioFake:
        app = web.Application()
        app.router.add_post(f"/v2/Services/{SERVICE}/Verifications", self._send)
        app.router.add_post(f"/v2/Services/{SERVICE}/VerificationCheck", self._check)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def expire(self, phone: str) -> None:
        del self.awaited[phone]

    async def _send(self, request: web.Request) -> web.Response:
        form = await self._form(request)
        if isinstance(form, web.Response):
            return form
        phone = form["To"]
        assert form["Channel"] == "sms"
        if phone in REFUSED:
            return _error(*REFUSED[phone])
        verification = self.awaited.setdefault(phone, Verification(f"{123456 + len(self.awaited)}"))
        if verification.sends == SENDS_MAX:
            return _error(429, 60203)
        verification.sends += 1
        self.texts.append((phone, verification.code))
        return web.json_response({"sid": "VE" + "2" * 32, "to": phone, "status": "pending", "valid": False}, status=201)

    async def _check(self, request: web.Request) -> web.Response:
        form = await self._form(request)
        if isinstance(form, web.Response):
            return form
        verification = self.awaited.get(form["To"])
        if verification is None:
            return _error(404, 20404)
        if not 4 <= len(form["Code"]) <= 10:
            return _error(400, 60200)
        if verification.checks == CHECKS_MAX:
            return _error(429, 60202)
        verification.checks += 1
        right = form["Code"] == verification.code
        if right:
            del self.awaited[form["To"]]
        return web.json_response({"status": "approved" if right else "pending", "valid": right})

    async def _form(self, request: web.Request) -> Any:
        self.requests += 1
        given = request.headers.get("Authorization", "")
        if given != "Basic " + base64.b64encode(f"{ACCOUNT}:{TOKEN}".encode()).decode():
            return _error(401, 20003)
        return self.broken() if self.broken else await request.post()


def _error(status: int, code: int) -> web.Response:
    return web.json_response({"code": code, "status": status, "message": f"error {code}"}, status=status)
