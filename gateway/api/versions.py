"""Meter versions by id and number: what a stored charge is explained with. They never change, so they are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from gateway.core.meter import Meter, from_definition
from gateway.store.postgres import Store

ENTRIES_MAX = 10_000

Version = tuple[str, int]
"""Meter id and version number."""


class MeterVersions:
    """A bounded cache in front of the table `meter_versions`; the version used longest ago makes room."""

    def __init__(self, store: Store, entries_max: int = ENTRIES_MAX) -> None:
        self._store = store
        self._entries_max = entries_max
        self._kept: OrderedDict[Version, Meter] = OrderedDict()

    async def get(self, wanted: Iterable[Version]) -> Mapping[Version, Meter]:
        """The meters of all `wanted` versions that exist, in at most one query."""
        versions = set(wanted)
        found = {version: meter for version in versions if (meter := self._kept.get(version)) is not None}
        for version in found:
            self._kept.move_to_end(version)
        if missing := versions - found.keys():
            found |= await self._load(missing)
        return found

    async def _load(self, versions: set[Version]) -> dict[Version, Meter]:
        ids, numbers = zip(*versions, strict=True)
        loaded = {
            (row["meter_id"], row["version"]): from_definition(row["meter_id"], row["version"], row["definition"])
            for row in await self._store.rows("meters.versions", list(ids), list(numbers))
        }
        self._kept.update(loaded)
        while len(self._kept) > self._entries_max:
            self._kept.popitem(last=False)
        return loaded
