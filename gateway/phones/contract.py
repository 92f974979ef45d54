"""What the rest of the gateway may ask of whoever sends codes to phones, and what it is told.

Phone numbers are E.164 (`numbers.read` makes them so). How often a code may be sent again, and to whom, is for the
caller to limit: a sender has limits of its own, but each code costs money.
"""

from __future__ import annotations

from typing import Literal, Protocol

Mode = Literal["test", "live"]
Checked = Literal["right", "wrong", "expired", "too_many"]

CODE_DIGITS = 6
CODE_TTL_S = 600
CHECKS_MAX = 5


class PhoneCodes(Protocol):
    """Sends codes, and checks them. Every method may raise ObolError `phone_codes_unavailable`."""

    name: str
    mode: Mode

    async def send(self, phone: str, purpose: str) -> None:
        """Send a code. `purpose`: in a few words, for the log.

        Raise ObolError `invalid_request` for a number that can get none, `too_many_requests` for one that got too many.
        """
        ...

    async def check(self, phone: str, code: str) -> Checked:
        """What a code is worth. One that is right is used up. "expired": none is awaited (any more)."""
        ...

    async def close(self) -> None:
        """Close the connections to the sender."""
        ...


def masked(phone: str) -> str:
    """For logs: the country's first digits and the last two."""
    return f"{phone[:3]}{'*' * max(len(phone) - 5, 0)}{phone[-2:]}"
