"""Structured logs: one compact JSON object a line on standard error, never with a secret in it.

Fields: ts (UTC, milliseconds), level, logger, event (the message), and whatever the caller gives as `extra`, such as
`request_id`. Every finished line goes through `redact`, so that messages, extra fields and tracebacks are all covered.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

from gateway.errors import ConfigurationError

TEXT_CHARACTERS_MAX = 8_192
MASK = "[redacted]"
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
            r"\b(?:aks_|cons_|ps_|lava_sk_|sk-|AIza|gsk_|xai-)[A-Za-z0-9._-]{6,}",
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
    """A record as one line of JSON. Never raises, whatever the extra fields hold."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _message(record)[:TEXT_CHARACTERS_MAX],
        }
        fields |= {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            # The end of a traceback says what happened.
            fields["exception"] = self.formatException(record.exc_info)[-TEXT_CHARACTERS_MAX:]
        return redact(json.dumps(fields, separators=(",", ":")))


def configure(level: str) -> None:
    """Send all logs of this process to standard error. Raise ConfigurationError for an unknown level."""
    if level.lower() not in LEVELS:
        raise ConfigurationError(f"OBOL_LOG_LEVEL must be one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("aiohttp.server").addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """False for a client's malformed HTTP: it was answered with 400, and anybody could fill the log with it."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or type(error).__module__ != "aiohttp.http_exceptions"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):
        return f"{record.msg} {record.args}"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)[:TEXT_CHARACTERS_MAX]
