"""Who sends codes for which merchants: the sandbox for test merchants, Twilio for live ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import ObolError
from gateway.phones.contract import Mode, PhoneCodes
from gateway.phones.sandbox import Sandbox
from gateway.phones.twilio import Twilio
from gateway.settings import Settings
from gateway.store.postgres import Store


class Phones:
    """The senders of a process."""

    def __init__(self, test: PhoneCodes, live: PhoneCodes | None = None) -> None:
        if test.mode != "test" or (live and live.mode != "live"):
            raise ValueError("a sender of the other mode")
        self._test = test
        self._live = live

    def of(self, mode: Mode) -> PhoneCodes:
        """Raise ObolError where there is none."""
        sender = self._test if mode == "test" else self._live
        if sender is None:
            text = "phone codes are not configured for live mode: set OBOL_TWILIO_ACCOUNT_SID and its companions"
            raise ObolError("phone_codes_not_configured", text)
        return sender


@asynccontextmanager
async def opened(settings: Settings, store: Store) -> AsyncIterator[Phones]:
    """The senders that the settings name, closed at the end."""
    live = _twilio(settings)
    try:
        yield Phones(Sandbox(store), live)
    finally:
        if live is not None:
            await live.close()


def _twilio(settings: Settings) -> Twilio | None:
    if not settings.twilio_account_sid:
        return None
    return Twilio(
        settings.twilio_account_sid,
        settings.twilio_auth_token,
        settings.twilio_verify_service_sid,
        timeout_ms=settings.twilio_timeout_ms,
        base_url=settings.twilio_url,
    )
