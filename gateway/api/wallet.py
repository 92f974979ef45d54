"""The merchant's own wallet, or that of a wallet key, and what it could be funded with.

Cards are their payers' and are charged by checkouts and by the collector: none is named or charged here.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.api import key_holder, paging
from gateway.api.connection_object import Balances, pots
from gateway.api.connection_reader import ConnectionReader
from gateway.api.context import ApiContext
from gateway.api.key_holder import KeyHolders
from gateway.api.operation import Call, Money, Nothing, Operation, Page, Text, Time
from gateway.api.reading import invalid
from gateway.core.money import NANO
from gateway.errors import ObolError

FUNDING_MIN_NANO, FUNDING_MAX_NANO = 10 * NANO, 10_000 * NANO


class Wallet(msgspec.Struct, kw_only=True):
    """`balance`: all pots less the overage."""

    wallet_id: str
    connection_id: str
    balance: Money
    balances: Balances
    autopay_enabled: bool


class PaymentMethod(msgspec.Struct, kw_only=True):
    """Something that can be charged. None is shown here."""

    payment_method_id: str
    created_at: Time


class Funding(msgspec.Struct, kw_only=True):
    """What to charge, and how much: 10 to 10,000 dollars."""

    payment_method_id: Text
    amount: Annotated[Money, Meta(description="10 to 10000 dollars.")]


class WalletRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._reader = ConnectionReader(context)
        self._holders = KeyHolders(context)

    def operations(self) -> list[Operation]:
        tag, authorize = "Wallet", self._holders.authorize
        return [
            Operation(
                "GET",
                "/v1/wallet",
                self.read,
                "Retrieve the wallet",
                tag,
                answer=Wallet,
                errors=("connection_not_found",),
                authorize=authorize,
            ),
            Operation(
                "GET",
                "/v1/payment_methods",
                self.list,
                "List payment methods",
                tag,
                query=Page,
                answer=paging.Listed[PaymentMethod],
                authorize=authorize,
            ),
            Operation(
                "POST",
                "/v1/wallet/fund",
                self.fund,
                "Fund the wallet",
                tag,
                body=Funding,
                status=404,  # whatever it names: the document shows no other answer
                errors=("payment_method_not_found",),
                authorize=authorize,
            ),
        ]

    async def read(self, call: Call[Nothing, Nothing]) -> Wallet:
        """The merchant's own, which is not charged for its calls; with a wallet key that key's."""
        connection_id = key_holder.connection_id(call.request) or call.merchant.self_connection_id or ""
        row = await self._reader.find(call.merchant, connection_id, "authorization")
        balance = await self._reader.balance(call.merchant, row)
        return Wallet(
            wallet_id=row["wallet_id"],
            connection_id=row["connection_id"],
            balance=Money(balance.total_nano),
            balances=pots(balance),
            autopay_enabled=False,
        )

    async def list(self, call: Call[Nothing, Page]) -> paging.Listed[PaymentMethod]:
        """None: a merchant has no card, and a payer's are not shown to merchants."""
        paging.window(call.query)
        return paging.Listed(data=[], has_more=False)

    async def fund(self, call: Call[Funding, Nothing]) -> Nothing:
        """Refused: there is no payment method that could be named."""
        if not FUNDING_MIN_NANO <= call.body.amount.nano <= FUNDING_MAX_NANO:
            raise invalid("amount", "must be from 10 to 10000 dollars")
        raise ObolError(
            "payment_method_not_found",
            "payment_method_id names none: this wallet has no card",
            param="payment_method_id",
        )
