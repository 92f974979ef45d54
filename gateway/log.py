"""Structured logs: one compact JSON object a line on standard error, never with a secret in it.

Fields: ts (UTC, milliseconds), level, logger, event (the message), and whatever the caller gives as `extra`, such as
`request_id`. The installation's own secrets are masked by their very text, whatever they look like; then every
finished line goes through `redact`, so that messages, extra fields and tracebacks are all covered. Uncaught exceptions,
those of threads too, are lines like all others.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any
from urllib.parse import quote

from gateway.errors import ConfigurationError

TEXT_CHARACTERS_MAX = 8_192
MASK = "[redacted]"
KNOWN_SECRET_MIN_CHARACTERS = 6
"""A shorter one would mask parts of ordinary words."""
LEVELS = ("debug", "info", "warning", "error", "critical")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# What looks like a secret. None matches a quote or half an escape, so a masked line of JSON is still JSON.
_VALUE = r"(?:[^\s\"'\\&,;<>]|\\u[0-9a-f]{4})+"
_SECRETS = re.compile(
    "|".join(
        (
            r"(?P<scheme>(?i:\b(?:bearer|basic)(?: |%20)+))" + _VALUE,
            r"(?P<assigned>(?i:\b[\w-]*(?:key|token|secret|password)(?:=|%3d)))" + _VALUE,
            r"(?P<field>(?i:\b[\w-]*(?:api[-_]?key|secret|password|authorization)\\?[\"']?: ?\\?[\"']?"
            r"(?:bearer +|basic +)?))" + _VALUE,
            r"(?P<url>://[^\s/:@\"'\\]*:)[^\s/@\"'\\]+(?=@)",
            r"\b(?:aks_|cons_|ps_|lava_sk_|lava_wk_|sk-|AIza|gsk_|xai-)[A-Za-z0-9._-]{6,}",
            # Long base64 or base64url, dotted or not, as forward tokens are: both cases, a digit, no absolute path.
            r"(?<![A-Za-z0-9._+/-])(?!/)(?=[a-z0-9._+/-]*[A-Z])(?=[A-Z0-9._+/-]*[a-z])(?=[A-Za-z._+/-]*\d)"
            r"[A-Za-z0-9._+/-]{40,}={0,2}",
        )
    )
)


def redact(text: str) -> str:
    """`text` with everything masked that looks like a credential."""
    return _SECRETS.sub(lambda match: (match[match.lastgroup] if match.lastgroup else "") + MASK, text)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON, `secrets` masked wherever they stand. Never raises, whatever the fields hold."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        known = [secret for secret in secrets if len(secret) >= KNOWN_SECRET_MIN_CHARACTERS]
        spellings = {spelling for text in known for spelling in (text, quote(text, safe=""), repr(text)[1:-1])}
        longest_first = sorted(spellings, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": self._masked(_message(record))[:TEXT_CHARACTERS_MAX],
        }
        fields |= {name: self._plain(value) for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            # The end of a traceback says what happened.
            fields["exception"] = self._masked(self.formatException(record.exc_info))[-TEXT_CHARACTERS_MAX:]
        return redact(json.dumps(fields, separators=(",", ":")))

    def _masked(self, text: str) -> str:
        """Before a text is cut: half a secret would not be recognised."""
        return redact(self._known.sub(MASK, text))

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        return self._masked(str(value))[:TEXT_CHARACTERS_MAX]


def configure(level: str, secrets: Iterable[str] = ()) -> None:
    """Send all logs of this process to standard error, without `secrets`. Raise ConfigurationError for a bad level."""
    if level.lower() not in LEVELS:
        raise ConfigurationError(f"OBOL_LOG_LEVEL must be one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    sys.excepthook = _uncaught
    threading.excepthook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("obol").critical("uncaught", exc_info=(kind, error or kind(), trace))


def _is_ours(record: logging.LogRecord) -> bool:
    """False for a client's malformed HTTP: it was answered with 400, and anybody could fill the log with it."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or type(error).__module__ != "aiohttp.http_exceptions"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):
        return f"{record.msg} {record.args}"
