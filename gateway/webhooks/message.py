"""What an event says: the connection as it is when the event is first sent, in the words of the endpoint's style."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.connection_object import connection_object
from gateway.api.operation import encode
from gateway.api.responses import iso
from gateway.billing.outbox import name_of
from gateway.errors import ObolError
from gateway.ledger.wallets import WalletRef, Wallets
from gateway.store.postgres import Store
from gateway.webhooks.claims import Claim, Endpoint
from gateway.wire.js_json import stringify

_SECRET_FIELDS = ("connection_secret", "customer_secret")
"""They are stored empty, and filled in when a body is sent: no table holds a connection's secret."""


class Messages:
    """Writes the bodies."""

    def __init__(self, store: Store, wallets: Wallets) -> None:
        self._store = store
        self._wallets = wallets

    async def write(self, claim: Claim, endpoint: Endpoint) -> str:
        """The body as it is stored. Raise LedgerAway, or ObolError (503) where the balance is not known now."""
        event = name_of(claim.event, endpoint.event_style)
        secrets = dict.fromkeys(_SECRET_FIELDS, "")  # first, so that none of the merchant's own text stands before them
        data = {**secrets, **await self._connection(claim), **(claim.data or {}), **secrets}
        head = {"id": claim.event_id, "event": event, "type": event, "created_at": iso(claim.created_at)}
        return stringify({**head, "data": data})

    async def _connection(self, claim: Claim) -> dict[str, Any]:
        row = await self._store.row("webhooks.connection", claim.merchant_id, claim.connection_id)
        if row is None:
            raise ValueError("the connection is not known")
        wallet = WalletRef(row["wallet_id"], row["shard"], claim.merchant_id)
        (balance,) = await self._wallets.balances([wallet])
        if balance is None:
            raise ObolError("wallet_unavailable", "the wallet is being rebuilt", retry_after_s=1)
        shown: dict[str, Any] = msgspec.json.decode(encode(connection_object(row, balance, "", row["merchant_now"])))
        names = {"connectionId": claim.connection_id, "customerId": claim.connection_id}
        return {**shown, "balance": shown["wallet"]["balance"], **names}


def with_secret(body: str, secret: str) -> bytes:
    """The body as it is sent. Text in it has its quotes escaped, so that the first such member is the one meant."""
    for name in _SECRET_FIELDS:
        body = body.replace(f'"{name}":""', f'"{name}":{stringify(secret)}', 1)
    return body.encode()
