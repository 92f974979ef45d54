"""Codes for test merchants: shown in the terminal instead of sent. Where one was shown, `000000` is right, too."""

from __future__ import annotations

import hmac
import logging
import secrets

from gateway.phones.contract import CHECKS_MAX, CODE_DIGITS, CODE_TTL_S, Checked, Mode, masked
from gateway.store.postgres import Store
from gateway.store.secrets import digest

ANY_CODE = "0" * CODE_DIGITS
_LOG = logging.getLogger(__name__)


class Sandbox:
    """Keeps its codes in PostgreSQL, so that any process of the installation can check them. It keeps no number."""

    name = "sandbox"
    mode: Mode = "test"

    def __init__(self, store: Store) -> None:
        self._store = store

    async def send(self, phone: str, purpose: str) -> None:
        code = f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}"
        await self._store.execute("phones.sweep")
        row = await self._store.row("phones.send", digest(phone), code, CODE_TTL_S)
        assert row is not None
        _LOG.info("the code for %s is %s", masked(phone), row["code"], extra={"purpose": purpose})

    async def check(self, phone: str, code: str) -> Checked:
        async with self._store.transaction() as connection:
            row = await connection.fetchrow(self._store.sql("phones.check"), digest(phone))
            if row is None:
                return "expired"
            if row["checks"] > CHECKS_MAX:
                return "too_many"
            given = code.strip()
            if given != ANY_CODE and not hmac.compare_digest(given.encode(), row["code"].encode()):
                return "wrong"
            await connection.execute(self._store.sql("phones.use"), digest(phone))
            return "right"

    async def close(self) -> None:
        """The store is not the sandbox's own."""
