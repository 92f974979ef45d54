"""Every setting of Obol, in one table.

A setting comes from, in rising order of precedence: its default here, `config/obol.toml`
(or the file named by `OBOL_CONFIG`), the environment variable `OBOL_<NAME>`. All are read and
validated once, at start; nothing else in the code reads the environment. `docs/settings.md`
documents each one, and a test holds it to this table.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from gateway.errors import ConfigurationError

ENV_PREFIX = "OBOL_"
PROVIDER_KEY_PREFIX = "OBOL_PROVIDER_KEY_"

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The validated settings. Units stand last in the names."""

    host: str = "127.0.0.1"
    port: Port = 8080
    workers: NotNegative = 0
    data_dir: str = ".obol"
    redis_url: str = ""
    postgres_url: str = ""
    pg_bin_dir: str = ""
    test_mode: bool = False
    upstream_map: dict[str, str] = {}
    provider_keys: dict[str, str] = {}
    master_key: str = ""
    metrics_dir: str = ""
    log_level: str = "info"

    ledger_shards: Annotated[int, Meta(ge=1, le=1024)] = 16
    redis_connections: Annotated[int, Meta(ge=1, le=64)] = 1
    redis_timeout_ms: Positive = 5_000
    redis_pending_commands_max: Positive = 50_000

    principal_cache_entries: Positive = 100_000
    principal_cache_ttl_s: Positive = 60

    max_request_body_bytes: Positive = 25 * 1024 * 1024
    max_header_bytes: Positive = 64 * 1024
    max_sse_event_bytes: Positive = 32 * 1024 * 1024
    max_metered_response_bytes: Positive = 64 * 1024 * 1024
    max_counted_text_bytes: Positive = 4 * 1024 * 1024

    upstream_connections_max: Positive = 4_096
    upstream_connect_timeout_ms: Positive = 10_000
    upstream_idle_connection_s: Positive = 30
    first_byte_timeout_s: Positive = 600
    chunk_idle_timeout_s: Positive = 300
    request_timeout_s: Positive = 3_600
    client_gone_drain_s: NotNegative = 30
    client_gone_drain_bytes: NotNegative = 8 * 1024 * 1024
    shutdown_drain_s: NotNegative = 120

    default_max_output_tokens: Positive = 4_096
    hold_ttl_s: Positive = 120
    settled_record_ttl_s: Positive = 900
    report_record_ttl_s: Positive = 172_800
    overage_cap_nano: NotNegative = 100 * 1_000_000_000
    unpriced_models: Annotated[str, Meta(pattern="^(meter|refuse)$")] = "meter"

    flush_interval_ms: Positive = 100
    flush_batch_entries: Annotated[int, Meta(ge=1, le=10_000)] = 2_000
    reap_interval_ms: Positive = 1_000
    postgres_pool_max: Positive = 10


def load(
    environ: Mapping[str, str] | None = None,
    path: Path | None = None,
    **overrides: Any,
) -> Settings:
    """Read the settings file and the environment. Raise ConfigurationError naming the bad setting."""
    environ = os.environ if environ is None else environ
    values = _from_file(path or _config_path(environ))
    values |= _from_environment(environ)
    values |= {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"a setting is not usable: {error}") from None
    _check(settings)
    return settings


def _config_path(environ: Mapping[str, str]) -> Path:
    from gateway import share

    named = environ.get(f"{ENV_PREFIX}CONFIG")
    return Path(named) if named else share.directory("config") / "obol.toml"


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"the settings file {path} does not exist") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the settings file {path} is not TOML: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    names = set(Settings.__struct_fields__) - {"provider_keys"}
    values: dict[str, Any] = {}
    keys = {
        name.removeprefix(PROVIDER_KEY_PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PROVIDER_KEY_PREFIX) and value
    }
    if keys:
        values["provider_keys"] = keys
    for name in names:
        raw = environ.get(ENV_PREFIX + name.upper())
        if raw is None or raw == "":
            continue
        values[name] = _json(ENV_PREFIX + name.upper(), raw) if name == "upstream_map" else raw
    return values


def _json(name: str, raw: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        raise ConfigurationError(f"{name} is not JSON") from None


def _check(settings: Settings) -> None:
    if settings.upstream_map and not settings.test_mode:
        raise ConfigurationError(
            "OBOL_UPSTREAM_MAP sends a provider's traffic and keys elsewhere, so it is refused unless OBOL_TEST_MODE=1"
        )
    for origin, target in settings.upstream_map.items():
        for url in (origin, target):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
                raise ConfigurationError(f"OBOL_UPSTREAM_MAP: {url!r} is not an origin such as http://127.0.0.1:9000")
