"""Who manages spend keys and wallet keys: a merchant by its secret key, or by a wallet key the holder of one wallet."""

from __future__ import annotations

from aiohttp import web

from gateway.api.context import ApiContext
from gateway.billing.principals import Merchant
from gateway.errors import ObolError
from gateway.store.secrets import digest
from gateway.wire import credential

WALLET_KEY_PREFIX = "lava_wk_"
_WALLET, _CONNECTION = web.RequestKey("wallet_id", str), web.RequestKey("connection_id", str)


class KeyHolders:
    """`authorize` is an operation's; `wallet_id` and `connection_id` tell afterwards what it may see."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def authorize(self, request: web.Request) -> Merchant:
        """Raise ObolError `unauthorized`."""
        try:
            text = credential.find(request.headers.get)
        except ObolError:
            text = ""
        if not text.startswith(WALLET_KEY_PREFIX):
            return await self._context.merchant(request)
        row = await self._context.store.row("keys.wallet_by_hash", digest(text))
        if row is None:
            raise ObolError("unauthorized", "this wallet key is not known", param="authorization")
        await self._context.store.execute("keys.wallet_used", row["wallet_key_id"])
        request[_WALLET], request[_CONNECTION] = row["wallet_id"], row["connection_id"]
        return await self._context.principals.merchant_by_id(row["merchant_id"])


def wallet_id(request: web.Request) -> str | None:
    """The one wallet that the caller may see; None for a merchant."""
    return request.get(_WALLET)


def connection_id(request: web.Request) -> str | None:
    """Whose wallet that is."""
    return request.get(_CONNECTION)
