"""What the fake has seen. A test asks it what really went upstream."""

from __future__ import annotations

import hashlib
from asyncio import to_thread
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

RECORDS_MAX = 10_000
KEPT_BODY_MAX_BYTES = 16 * 1024
HASH_INLINE_MAX_BYTES = 1024 * 1024

Outcome = Literal["in_progress", "completed", "disconnected", "closed", "reset"]


@dataclass(slots=True)
class Record:
    """One request. Header names and values are as sent; `kept_body` is None above 16 KiB."""

    number: int
    method: str
    target: str
    """Path and query as they stood in the request line."""
    host: str
    headers: list[tuple[str, str]]
    body_bytes: int = 0
    body_sha256: str = ""
    kept_body: bytes | None = None
    status: int = 0
    response_bytes: int = 0
    messages: list[bytes] = field(default_factory=list)
    """Of a realtime session: what the client sent."""
    outcome: Outcome = "in_progress"
    """completed; disconnected (the client went first); closed or reset (a fault ended it)."""

    async def take_body(self, body: bytes) -> None:
        self.body_bytes = len(body)
        digest = hashlib.sha256(body) if len(body) < HASH_INLINE_MAX_BYTES else await to_thread(hashlib.sha256, body)
        self.body_sha256 = digest.hexdigest()
        self.kept_body = body if len(body) <= KEPT_BODY_MAX_BYTES else None

    def header(self, name: str) -> str | None:
        """The first value of a header, by its name in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def json(self) -> Any:
        """The body as JSON, or None where it is not JSON or was too large to keep."""
        try:
            return orjson.loads(self.kept_body) if self.kept_body else None
        except orjson.JSONDecodeError:
            return None

    def as_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "method": self.method,
            "path": self.target,
            "host": self.host,
            "headers": self.headers,
            "body_bytes": self.body_bytes,
            "body_sha256": self.body_sha256,
            "json": self.json,
            "status": self.status,
            "response_bytes": self.response_bytes,
            "outcome": self.outcome,
        }


class RequestLog:
    """The last 10,000 requests, and how many there were since the log was cleared."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=RECORDS_MAX)
        self.count = 0

    def open(self, method: str, target: str, host: str, headers: list[tuple[str, str]]) -> Record:
        self.count += 1
        record = Record(self.count, method, target, host, headers)
        self._records.append(record)
        return record

    def clear(self) -> None:
        self._records.clear()
        self.count = 0

    def latest(self, limit: int = RECORDS_MAX) -> list[Record]:
        """The last `limit` records, oldest first."""
        return list(self._records)[-limit:]

    def as_json(self, limit: int) -> dict[str, Any]:
        """`count` is of all requests since the last clear, `outcomes` of the records still kept."""
        outcomes = Counter(record.outcome for record in self._records)
        return {
            "count": self.count,
            "outcomes": dict(outcomes),
            "requests": [record.as_json() for record in self.latest(limit)],
        }
