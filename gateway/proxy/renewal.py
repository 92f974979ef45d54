"""A live call's hold does not expire: one loop renews the holds of all calls under way."""

from __future__ import annotations

import asyncio

from gateway.ledger.connection import LedgerAway
from gateway.ledger.wallets import now_ms
from gateway.proxy.call import Call
from gateway.proxy.parts import Parts

RENEWALS_PER_TTL = 4


async def keep_holds(parts: Parts) -> None:
    """For ever. A call that began since the last round is renewed early, which does no harm."""
    ttl_s = parts.settings.hold_ttl_s
    while True:
        await asyncio.sleep(ttl_s / RENEWALS_PER_TTL)
        expires_ms = now_ms() + ttl_s * 1000
        await asyncio.gather(*(_renew(parts, call, expires_ms) for call in list(parts.live)))


async def _renew(parts: Parts, call: Call, expires_ms: int) -> None:
    try:
        await parts.wallets.extend(
            call.principal.wallet, call.request_id, call.held_nano, expires_ms=expires_ms, progress=None
        )
    except LedgerAway:
        return  # the next round comes well before the hold expires
