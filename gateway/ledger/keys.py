"""Names of every key in Redis. All keys of a wallet carry its shard as hash tag, so a script touches one slot."""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

PREFIX = "obol"


def shard_of(name: str, shards: int) -> int:
    """The shard a new wallet (or a claim) lives on. A wallet's shard is stored and never changes."""
    return crc32(name.encode("utf-8", "surrogatepass")) % shards


class WalletNames(NamedTuple):
    """The keys of one wallet that no request changes, and the prefixes of those that one does."""

    wallet: str
    tiers: str
    holds: str
    journal: str
    journal_counter: str
    hold_prefix: str
    record_prefix: str


WALLETS_REMEMBERED = 50_000


class Keys:
    """The keys of one installation. `prefix` sets parallel installations on one server apart."""

    def __init__(self, prefix: str = PREFIX) -> None:
        self.prefix = prefix
        self._of_wallets: dict[tuple[int, str, str], WalletNames] = {}

    def of_wallet(self, shard: int, wallet_id: str, merchant_id: str) -> WalletNames:
        """Remembered: a call asks twice, and every call of a customer for the same."""
        found = self._of_wallets.get((shard, wallet_id, merchant_id))
        if found is None:
            if len(self._of_wallets) >= WALLETS_REMEMBERED:
                self._of_wallets.clear()
            found = WalletNames(
                self.wallet(shard, wallet_id),
                self.tiers(shard, wallet_id),
                self.holds(shard),
                self.journal(shard),
                self.journal_counter(shard),
                self.hold(shard, merchant_id, ""),
                self.record(shard, merchant_id, ""),
            )
            self._of_wallets[shard, wallet_id, merchant_id] = found
        return found

    def _of(self, shard: int, rest: str) -> str:
        return f"{self.prefix}:{{{shard}}}:{rest}"

    def wallet(self, shard: int, wallet_id: str) -> str:
        return self._of(shard, f"w:{wallet_id}")

    def tiers(self, shard: int, wallet_id: str) -> str:
        """Units used in the current cycle, a field a meter."""
        return self._of(shard, f"t:{wallet_id}")

    def hold(self, shard: int, merchant_id: str, request_id: str) -> str:
        return self._of(shard, f"h:{merchant_id}:{request_id}")

    def record(self, shard: int, merchant_id: str, request_id: str) -> str:
        """How a request ended, kept a while so that re-sent commands find it."""
        return self._of(shard, f"r:{merchant_id}:{request_id}")

    def credit(self, shard: int, credit_id: str) -> str:
        return self._of(shard, f"c:{credit_id}")

    def spend(self, shard: int, spend_key_id: str) -> str:
        """The counters of a spend key."""
        return self._of(shard, f"k:{spend_key_id}")

    def claim(self, shard: int, merchant_id: str, name: str) -> str:
        return self._of(shard, f"i:{merchant_id}:{name}")

    def holds(self, shard: int) -> str:
        """Open holds: hold keys sorted by expiry in ms."""
        return self._of(shard, "holds")

    def journal(self, shard: int) -> str:
        return self._of(shard, "journal")

    def journal_counter(self, shard: int) -> str:
        return self._of(shard, "journal-n")

    def restoring(self, shard: int) -> str:
        """Ids of wallets that are to be restored from PostgreSQL before all others."""
        return self._of(shard, "restoring")

    def sweep(self, shard: int) -> str:
        """While every wallet of the shard has to be looked at: the id behind which to go on."""
        return self._of(shard, "sweep")

    @property
    def changes(self) -> str:
        """The stream that tells every worker which merchant's principals to forget."""
        return self._of(0, "changes")
