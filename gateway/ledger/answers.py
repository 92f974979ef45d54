"""What the scripts answer, typed: each `told` reads a reply of `lua/`. Amounts are nano-dollars."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

UNLIMITED = -1


class Balance(msgspec.Struct, frozen=True):
    """A wallet at one moment. `limit_nano` is the overage allowed, -1 without limit."""

    status: str
    cycle_nano: int
    bundle_nano: int
    prepaid_nano: int
    overage_nano: int
    limit_nano: int
    held_nano: int
    seq: int
    calls: int = 0
    """Open holds."""

    @property
    def total_nano(self) -> int:
        return self.cycle_nano + self.bundle_nano + self.prepaid_nano - self.overage_nano

    @property
    def available_nano(self) -> int | None:
        """What new holds may reserve; None without limit."""
        if self.limit_nano == UNLIMITED:
            return None
        return self.total_nano + self.limit_nano - self.held_nano

    @classmethod
    def told(cls, reply: Any) -> Balance | None:
        """Of the hash's BALANCE_FIELDS; None where Redis does not hold the wallet, or it is out of use."""
        if isinstance(reply, Exception):
            raise reply
        if reply[0] is None:
            return None
        return cls(text(reply[0]), *(int(figure or 0) for figure in reply[1:]))


BALANCE_FIELDS = ("status", "cycle", "bundle", "prepaid", "overage", "limit", "held", "seq", "calls")


class HoldResult(msgspec.Struct, frozen=True):
    """`kind` is the first word of hold.lua's reply. `retry_ms`: until there is a token again. `available_nano` and
    `held_nano` are the wallet's, or the spend key's where that is why."""

    kind: Literal[
        "held",
        "insufficient",
        "reserved",
        "busy",
        "throttled",
        "disabled",
        "ended",
        "unknown",
        "key_spent",
        "key_requests",
        "key_throttled",
        "key_unopened",
    ]
    available_nano: int = 0
    held_nano: int = 0
    status: str = "ok"
    calls: int = 0
    retry_ms: int = 0

    @classmethod
    def told(cls, reply: Any) -> HoldResult:
        kind = text(reply[0])
        if kind in ("insufficient", "reserved", "key_spent"):
            return cls(kind, int(reply[1]), int(reply[2]))  # type: ignore[arg-type]
        if kind == "busy":
            return cls("busy", calls=int(reply[1]))
        if kind in ("throttled", "key_throttled"):
            return cls(kind, retry_ms=int(reply[1]))  # type: ignore[arg-type]
        return cls(kind, status=text(reply[1]) if kind == "disabled" else "ok")  # type: ignore[arg-type]


HELD = HoldResult("held")


class Extension(msgspec.Struct, frozen=True):
    """`kind` is the first word of extend.lua's reply; `amount_nano` is held now. `why`: of a refusal."""

    kind: Literal["extended", "refused", "unknown", "gone"]
    amount_nano: int = 0
    why: Literal["", "insufficient", "reserved", "key"] = ""
    available_nano: int = 0

    @classmethod
    def told(cls, reply: Any) -> Extension:
        kind = text(reply[0])
        if kind == "refused":
            return cls("refused", int(reply[3]), text(reply[1]), int(reply[2]))  # type: ignore[arg-type]
        return cls(kind, int(reply[1]) if kind == "extended" else 0)  # type: ignore[arg-type]


class Settled(msgspec.Struct, frozen=True):
    """`amount_nano` was debited; `fee_nano` is its graduated part; `position` the units used before."""

    kind: Literal["settled", "duplicate", "gone", "unknown"]
    amount_nano: int = 0
    fee_nano: int = 0
    position: int = 0
    journal_number: int = 0
    hold_lost: bool = False
    """Redis had lost the hold; the amount was debited without it."""

    @classmethod
    def told(cls, reply: Any) -> Settled:
        return cls(text(reply[0]), *(int(figure) for figure in reply[1:]))  # type: ignore[arg-type]


class Claim(msgspec.Struct, frozen=True):
    kind: Literal["claimed", "same", "conflict"]
    holder: str = ""
    done: bool = False

    @classmethod
    def told(cls, reply: Any, asked_by: str) -> Claim:
        kind = text(reply[0])
        if kind == "claimed":
            return cls("claimed", asked_by)
        return cls(kind, text(reply[1]), reply[2] == b"done")  # type: ignore[arg-type]


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
