"""Which processor serves which merchants: one for test mode, one for live mode, and never the one for the other.

Test merchants have Stripe where a test key is set, else the sandbox. Live merchants have Stripe with a live key, or no
cards. The sandbox stays for the test cards and charges that it made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from gateway.cards.contract import Mode, Processor
from gateway.cards.sandbox import Sandbox
from gateway.errors import ObolError
from gateway.settings import Settings
from gateway.store.postgres import Store

if TYPE_CHECKING:
    from gateway.cards.stripe import Stripe


class Cards:
    """The processors of a process."""

    def __init__(self, sandbox: Sandbox, test: Processor | None = None, live: Processor | None = None) -> None:
        if (test and test.mode != "test") or (live and live.mode != "live"):
            raise ValueError("a processor of the other mode")
        self.sandbox = sandbox
        self._first: dict[Mode, Processor | None] = {"test": test or sandbox, "live": live}
        everyone = (sandbox, test, live)
        self._named = {(each.mode, each.name): each for each in everyone if each is not None}

    def of(self, mode: Mode) -> Processor:
        """The processor for new cards. Raise ObolError where there is none."""
        processor = self._first[mode]
        if processor is None:
            text = f"cards are not configured for {mode} mode: set OBOL_STRIPE_{mode.upper()}_KEY"
            raise ObolError("cards_not_configured", text)
        return processor

    def named(self, mode: Mode, name: str) -> Processor:
        """The processor of a stored card or charge. Raise ObolError where it is not configured any more."""
        processor = self._named.get((mode, name))
        if processor is None:
            text = f"the card belongs to {name!r}, which is not configured for {mode} mode"
            raise ObolError("cards_not_configured", text)
        return processor


@asynccontextmanager
async def opened(settings: Settings, store: Store) -> AsyncIterator[Cards]:
    """The processors that the settings name, closed at the end."""
    async with AsyncExitStack() as stack:
        test, live = _stripe(settings, "test"), _stripe(settings, "live")
        for processor in (test, live):
            if processor is not None:
                stack.push_async_callback(processor.close)
        yield Cards(Sandbox(store), test, live)


def _stripe(settings: Settings, mode: Mode) -> Stripe | None:
    if not (settings.stripe_test_key if mode == "test" else settings.stripe_live_key):
        return None
    from gateway.cards.stripe import Keys, Stripe  # its library takes long to import, and much memory

    test = Keys(settings.stripe_test_key, settings.stripe_test_publishable_key, settings.stripe_test_webhook_secret)
    live = Keys(settings.stripe_live_key, settings.stripe_live_publishable_key, settings.stripe_live_webhook_secret)
    keys = test if mode == "test" else live
    return Stripe.open(mode, keys, timeout_ms=settings.charge_timeout_ms, base_url=settings.stripe_url)
