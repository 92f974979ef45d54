"""The number of shards may not go down: what lies on a shard beyond it would be charged and never recorded."""

from __future__ import annotations

from gateway.errors import ConfigurationError
from gateway.store.postgres import Store


async def refuse_fewer_shards(store: Store, shards: int) -> None:
    """Raise ConfigurationError where more shards are in use, ObolError while PostgreSQL is away."""
    found = await store.row("settles.highest_shard")
    if found is not None and found["shard"] is not None and found["shard"] >= shards:
        raise ConfigurationError(
            f"ledger_shards is {shards}, and shard {found['shard']} is in use: set it to {found['shard'] + 1} or more"
        )
