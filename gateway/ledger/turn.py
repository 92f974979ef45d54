"""What the turn of a cycle does to a wallet: the body of its journal entry, and what lua/turn.lua reads."""

from __future__ import annotations

import msgspec


class Turn(msgspec.Struct, frozen=True):
    """What is left in a pot stays where it is kept, and expires where it is not; `credit_nano` is the new cycle's."""

    keep_cycle: bool
    keep_bundle: bool
    credit_nano: int
    reset_meters: bool


DECODER = msgspec.json.Decoder(Turn)


def encode(turn: Turn) -> bytes:
    return msgspec.json.encode(turn)


def decode(body: bytes) -> Turn:
    """Raise msgspec.ValidationError or DecodeError where the body is no turn."""
    return DECODER.decode(body)
