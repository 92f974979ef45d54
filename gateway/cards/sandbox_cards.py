"""The usual test card numbers, and what the sandbox does with each.

A number becomes a `method_ref` that carries its behaviour and its last four digits: the number itself is kept nowhere.
A number that is not in the table is approved, as its check digit was right.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from gateway.cards.card_entry import CardEntry
from gateway.cards.contract import Card, ProcessorRefused

When = Literal["never", "present", "always"]


class Behaviour(msgspec.Struct, frozen=True):
    """`attach`: the decline code when the card is added, `charge`: when it is charged; None where it works.

    `authenticate`: when the customer must approve: "present" while adding the card and in charges with the customer
    there, "always" in every charge, so that one made while the customer is away cannot go through.
    """

    attach: str | None = None
    charge: str | None = None
    authenticate: When = "never"


APPROVED: Final = "approved"
BEHAVIOURS: Final = MappingProxyType(
    {
        APPROVED: Behaviour(),
        "declined": Behaviour(attach="generic_decline", charge="generic_decline"),
        "poor": Behaviour(attach="insufficient_funds", charge="insufficient_funds"),
        "lost": Behaviour(attach="lost_card", charge="lost_card"),
        "stolen": Behaviour(attach="stolen_card", charge="stolen_card"),
        "expired": Behaviour(attach="expired_card", charge="expired_card"),
        "wrongcvc": Behaviour(attach="incorrect_cvc", charge="incorrect_cvc"),
        "fault": Behaviour(attach="processing_error", charge="processing_error"),
        "velocity": Behaviour(attach="card_velocity_exceeded", charge="card_velocity_exceeded"),
        "fraudulent": Behaviour(attach="fraudulent", charge="fraudulent"),
        "later": Behaviour(charge="generic_decline"),
        "setup": Behaviour(authenticate="present"),
        "always": Behaviour(authenticate="always"),
        "poorafter": Behaviour(charge="insufficient_funds", authenticate="present"),
    }
)
_OF_NUMBER: Final = MappingProxyType(
    {
        "4000000000000002": "declined",
        "4000000000009995": "poor",
        "4000000000009987": "lost",
        "4000000000009979": "stolen",
        "4000000000000069": "expired",
        "4000000000000127": "wrongcvc",
        "4000000000000119": "fault",
        "4000000000006975": "velocity",
        "4100000000000019": "fraudulent",
        "4000000000000341": "later",
        "4000002500003155": "setup",
        "4000002760003184": "always",
        "4000008260003178": "poorafter",
    }
)
_REF: Final = re.compile(r"pm_sandbox_([a-z]+)_([a-z]+)_([0-9]{4})_([0-9]{2})([0-9]{4})_(\w+)")


def method_ref(entry: CardEntry, suffix: str) -> str:
    """The reference of a card that was entered. `suffix` (letters, digits, underscores) makes it unlike all others."""
    behaviour = _OF_NUMBER.get(entry.number, APPROVED)
    expiry = f"{entry.exp_month:02}{entry.exp_year:04}"
    return f"pm_sandbox_{behaviour}_{entry.brand}_{entry.number[-4:]}_{expiry}_{suffix}"


def card_of(ref: str) -> Card:
    """Raise ProcessorRefused where the sandbox made no such reference."""
    _, brand, last4, month, year = _parts(ref)
    return Card(ref, brand, last4, int(month), int(year))


def behaviour_of(ref: str) -> Behaviour:
    return BEHAVIOURS[_parts(ref)[0]]


def _parts(ref: str) -> tuple[str, str, str, str, str]:
    found = _REF.fullmatch(ref)
    if found is None or found[1] not in BEHAVIOURS:
        raise ProcessorRefused("method_ref: the sandbox knows no such card", code="resource_missing")
    return found[1], found[2], found[3], found[4], found[5]
