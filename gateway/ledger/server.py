"""What a Redis server says of itself, as far as money depends on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Read from INFO and CONFIG GET appendfsync. What it does not tell is empty or None."""

    run_id: str = ""
    """Another one for each start of the server."""
    replication_id: str = ""
    """Another one for each promotion: a primary that was a replica in between has taken over another's data."""
    role: str = ""
    append_only: bool = False
    fsync: str | None = None
    """always, everysec or no; None where the server does not tell, as managed ones often do not."""
    eviction: str = ""
    replicas: int = 0
    """Connected now."""
    replicated: bool = False
    """Whether any was since this server was first asked: it may have been promoted in the meantime."""
    may_lose: bool = True
    """Whether a crash of its machine, or a failover, may lose what it has acknowledged."""

    @classmethod
    def told(cls, info: bytes, appendfsync: Any) -> Server:
        """From the replies to INFO and to CONFIG GET appendfsync, which may be an error."""
        pairs = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines() if line[:1] != "#")
        fsync = appendfsync[1].decode() if isinstance(appendfsync, list) and len(appendfsync) == 2 else None
        return cls.of({name: value for name, _, value in pairs}, fsync)

    @classmethod
    def of(cls, info: Mapping[str, Any], fsync: str | None) -> Server:
        append_only, replicas = str(info.get("aof_enabled")) == "1", int(info.get("connected_slaves") or 0)
        return cls(
            run_id=str(info.get("run_id", "")),
            replication_id=str(info.get("master_replid", "")),
            role=str(info.get("role", "")),
            append_only=append_only,
            fsync=fsync,
            eviction=str(info.get("maxmemory_policy", "")),
            replicas=replicas,
            replicated=replicas > 0,
            may_lose=not append_only or fsync != "always" or replicas > 0,
        )

    def after(self, before: Server) -> Server:
        """This, known to have been told after `before`: a server that had replicas may yet lose to one of them."""
        if before.identity == self.identity and before.replicated and not self.replicated:
            return msgspec.structs.replace(self, replicated=True, may_lose=True)
        return self

    @property
    def identity(self) -> tuple[str, str]:
        """The same as long as the server cannot have come back with less than it has acknowledged."""
        return self.run_id, self.replication_id

    def dangers(self) -> Iterator[str]:
        """What no operator can want where every key is money."""
        if self.eviction not in ("", "noeviction"):
            yield f"maxmemory-policy is {self.eviction}: it deletes wallets when memory is short"
        if not self.append_only:
            yield "appendonly is off: a restart loses whatever came after the last snapshot"

    def described(self) -> dict[str, Any]:
        """For the log."""
        return {
            "run_id": self.run_id,
            "appendonly": self.append_only,
            "appendfsync": self.fsync,
            "eviction": self.eviction,
            "replicas": self.replicas,
        }


UNKNOWN = Server()
