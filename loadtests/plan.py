"""What one client process is to do. Validated here; sent to the process as JSON."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

ScenarioName = Literal["chat", "stream", "reports", "mixed"]
SCENARIOS: tuple[ScenarioName, ...] = ("chat", "stream", "reports", "mixed")

USERS_MAX = 10_000
RATE_MAX_PER_S = 200_000
DURATION_MAX_S = 3_600
PROCESSES_MAX = 16


class PlanError(Exception):
    """The command line asks for something unusable. The message names the flag."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process's share of the load. Units stand last in the names."""

    target: str
    scenario: ScenarioName = "chat"
    users: Annotated[int, Meta(ge=1, le=USERS_MAX)] = 16
    duration_s: Annotated[float, Meta(gt=0, le=DURATION_MAX_S)] = 10.0
    rate_per_s: Annotated[float, Meta(ge=0, le=RATE_MAX_PER_S)] = 0.0
    """0: closed loop."""
    key: str = ""
    """For chat and stream: Obol's forward token, or a provider's own key."""
    secret_key: str = ""
    """For reports: the merchant's secret key."""
    path: str = ""
    model: str = "gpt-4o-mini"
    prompt_bytes: Annotated[int, Meta(ge=1, le=1024 * 1024)] = 64
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    chunks: Annotated[int, Meta(ge=1, le=100_000)] = 50
    chunk_interval_ms: Annotated[int, Meta(ge=0, le=60_000)] = 5
    weights: dict[str, Annotated[int, Meta(ge=0, le=100)]] = msgspec.field(
        default_factory=lambda: {"chat": 6, "stream": 3, "reports": 1}
    )
    meter_slug: str = ""
    connection_id: str = ""
    run_id: str = "run"
    timeout_s: Annotated[float, Meta(gt=0, le=3_600)] = 30.0
    grace_s: Annotated[float, Meta(ge=0, le=3_600)] = 5.0
    """After the last intended send, how long exchanges under way and those still waiting may go on."""
    response_bytes_max: Annotated[int, Meta(ge=1)] = 256 * 1024 * 1024


def is_loopback(url: str) -> bool:
    """Whether `url`'s host is this machine's loopback, by name or address; nothing is resolved."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_target(url: str, *, owned: bool, flag: str = "--target") -> str:
    """Return `url`, or raise PlanError: not an http(s) URL, or not loopback without `--i-own-this-target`."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(character.isspace() for character in url):
        raise PlanError(f"{flag} {url!r} is not a URL such as http://127.0.0.1:8080/v1/")
    if not owned and not is_loopback(url):
        raise PlanError(
            f"{flag} {url} is not on this machine's loopback. Load on somebody else's service is an attack; "
            "give --i-own-this-target if it is yours"
        )
    return url
