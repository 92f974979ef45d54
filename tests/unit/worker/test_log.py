"""Every log line is one JSON object, and no secret gets through."""

from __future__ import annotations

import json
import logging
import sys
import threading
from base64 import b64encode, urlsafe_b64encode
from typing import Any

import pytest

from gateway import log
from gateway.errors import ConfigurationError

SECRETS = {
    "secret key": "aks_live_Zm9vYmFyYmF6cXV4",
    "connection secret": "cons_test_abcDEF123456",
    "meter secret": "ps_live_abcDEF123456",
    "spend key": "lava_sk_0123456789abcdef",
    "wallet key": "lava_wk_0123456789abcdef",
    "provider key": "sk-proj-abcdefgh-12345678",
    "google key": "AIzaSyA1234567890abcdefghijklmnopqrstu",
    "forward token": b64encode(b'{"secret_key":"aks_live_1234567890","product_secret":"ps"}').decode(),
    "url-safe token": urlsafe_b64encode(bytes(range(100, 160))).decode(),
}


def line(event: str, *arguments: Any, exc_info: Any = None, **extra: Any) -> dict[str, Any]:
    record = logging.LogRecord("obol.test", logging.ERROR, __file__, 1, event, arguments, exc_info)
    vars(record).update(extra)
    text = log.JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_line_is_a_json_object() -> None:
    fields = line("a %s\nhappened", "thing", request_id="req_1", shard=3, ratio=0.5, odd={"a": 1}, nothing=None)
    ts = fields.pop("ts")
    assert ts.endswith("Z") and len(ts) == len("2026-11-23T09:00:00.000Z")
    assert fields == {
        "level": "error", "logger": "obol.test", "event": "a thing\nhappened", "request_id": "req_1",
        "shard": 3, "ratio": 0.5, "odd": "{'a': 1}", "nothing": None,
    }  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secrets_are_masked_wherever_they_stand(secret: str) -> None:
    try:
        raise RuntimeError(f"upstream said: bad key {secret}!")
    except RuntimeError:
        exc_info = sys.exc_info()
    fields = line(f"got {secret}, no", exc_info=exc_info, header=secret, nested={"k": [secret]})
    assert secret not in json.dumps(fields)
    assert fields["event"].startswith("got [redacted]")
    assert "RuntimeError" in fields["exception"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("GET /v1beta/models?key=canary1&alt=sse", "GET /v1beta/models?key=[redacted]&alt=sse"),
        ("u=x%3Fkey%3Dcanary1", "u=x%3Fkey%3D[redacted]"),
        ("Authorization: Bearer canary1", "Authorization: Bearer [redacted]"),
        ("bearer canary1 was sent", "bearer [redacted] was sent"),
        ('{"api_key": "canary1"}', '{"api_key": "[redacted]"}'),
        ("x-api-key: canary1", "x-api-key: [redacted]"),
        ("redis://:canary1@127.0.0.1:6379/0", "redis://:[redacted]@127.0.0.1:6379/0"),
        ("postgresql://obol:canary1@db/x", "postgresql://obol:[redacted]@db/x"),
        ("password=canary1\u00e9canary1", "password=[redacted]"),
    ],
)
def test_what_stands_beside_a_secret_stays(text: str, masked: str) -> None:
    assert "canary1" not in json.dumps(line(text))
    assert line(text)["event"] == masked


@pytest.mark.parametrize(
    "text",
    [
        "wal_01m83vh4e1dft6ezhf7avr49wj",
        "req_0064f2b5c1a2f0123456789abcdef",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        '  File "/usr/lib/python3.11/site-packages/gateway/Worker/a_rather_long_directory_name/flusher.py", line 3',
        "obol:{3}:h:mer_1:my-request:17",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert line(text)["event"] == text


def test_nothing_breaks_the_formatter() -> None:
    assert line("%d", "x")["event"] == "%d ('x',)"
    assert line("\ud800 \0 \x1b")["event"] == "\ud800 \0 \x1b"
    assert len(line("x" * 100_000)["event"]) == log.TEXT_CHARACTERS_MAX


def test_known_secrets_are_masked_whatever_they_look_like() -> None:
    known = ["swordfish", "pass word/1", 'l\'un "autre"', "short"]
    formatter = log.JsonFormatter(known)

    def formatted(event: str, **extra: Any) -> str:
        record = logging.LogRecord("obol.test", logging.ERROR, __file__, 1, event, (), None)
        vars(record).update(extra)
        return formatter.format(record)

    text = formatted("a swordfish, pass word/1", at=known[:3], url="redis://x/?a=pass%20word%2F1", word="shortly")
    assert not [word for word in ("swordfish", "pass word", "pass%20word", "autre") if word in text]
    assert json.loads(text)["word"] == "shortly"  # too short to be told from ordinary words
    # A cut comes after the masking: no half of a secret is left at it.
    for before in range(log.TEXT_CHARACTERS_MAX - 12, log.TEXT_CHARACTERS_MAX):
        assert "swor" not in formatted("x" * before + " swordfish")


def test_uncaught_exceptions_are_lines_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    before = root.handlers[:], root.level
    try:
        log.configure("debug", ["swordfish"])
        try:
            raise ValueError("of the swordfish")
        except ValueError as error:
            sys.excepthook(type(error), error, error.__traceback__)

        def fail() -> None:
            raise ValueError("of the swordfish too")

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    finally:
        root.handlers, root.level = before
        sys.excepthook, threading.excepthook = hooks
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["exception"].splitlines()[-1] for line in lines] == [
        "ValueError: of the [redacted]",
        "ValueError: of the [redacted] too",
    ]
    assert all(line["level"] == "critical" for line in lines)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="OBOL_LOG_LEVEL"):
        log.configure("loud")
