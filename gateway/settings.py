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
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from gateway.errors import ConfigurationError

ENV_PREFIX = "OBOL_"
PROVIDER_KEY_PREFIX = "OBOL_PROVIDER_KEY_"
JSON_SETTINGS = ("upstream_map", "private_upstreams", "webhook_private_hosts", "webhook_retry_s", "charge_retry_days")

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
StripeTestKey = Annotated[str, Meta(pattern=r"^(?:(?:sk|rk)_test_[A-Za-z0-9_]+)?\Z")]
StripeLiveKey = Annotated[str, Meta(pattern=r"^(?:(?:sk|rk)_live_[A-Za-z0-9_]+)?\Z")]
StripeSecret = Annotated[str, Meta(pattern=r"^(?:whsec_[A-Za-z0-9_]+)?\Z")]
Loopback = Annotated[str, Meta(pattern=r"^(?:http://127\.0\.0\.1:[0-9]{1,5})?\Z")]
Host = Annotated[str, Meta(pattern=r"^(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,63}$")]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The validated settings. Units stand last in the names."""

    host: str = "127.0.0.1"
    port: Port = 8080
    workers: NotNegative = 0
    data_dir: str = ".obol"
    public_url: Annotated[str, Meta(pattern=r"^(?:https?://[A-Za-z0-9.\-\[\]:]+/)?$")] = ""
    redis_url: str = ""
    postgres_url: str = ""
    pg_bin_dir: str = ""
    test_mode: bool = False
    upstream_map: dict[str, str] = {}
    private_upstreams: tuple[Host, ...] = ()
    upstream_ca_file: str = ""
    fail_point_file: str = ""
    provider_keys: dict[str, str] = {}
    master_key: str = ""
    log_level: str = "info"

    ledger_shards: Annotated[int, Meta(ge=1, le=1024)] = 16
    redis_timeout_ms: Positive = 5_000
    redis_pending_commands_max: Positive = 50_000
    redis_wait_replicas: Annotated[int, Meta(ge=0, le=16)] = 0
    redis_wait_timeout_ms: Annotated[int, Meta(ge=1, le=2_000)] = 100
    settle_keep_s: Annotated[int, Meta(ge=0, le=300)] = 5
    settles_kept_max: Positive = 50_000
    settles_kept_max_bytes: Positive = 64 * 1024 * 1024

    principal_cache_entries: Positive = 100_000
    principal_cache_ttl_s: Positive = 60

    max_request_body_bytes: Positive = 25 * 1024 * 1024
    max_header_bytes: Positive = 64 * 1024
    max_headers: Annotated[int, Meta(ge=1, le=1_000)] = 128
    max_metadata_bytes: Positive = 64 * 1024
    request_head_timeout_s: Positive = 20
    request_body_idle_timeout_s: Positive = 30
    request_body_min_bytes_per_s: NotNegative = 500
    client_idle_connection_s: Positive = 75
    client_connections_max: Positive = 10_000
    connection_calls_max: NotNegative = 1_000
    connection_requests_per_minute: Annotated[int, Meta(ge=0, le=60_000_000)] = 0
    connection_requests_burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 60
    merchant_calls_per_process_max: NotNegative = 4_096
    max_metered_response_bytes: Positive = 64 * 1024 * 1024
    max_counted_text_bytes: Positive = 4 * 1024 * 1024

    upstream_connections_max: Positive = 4_096
    upstream_connect_timeout_ms: Positive = 10_000
    upstream_idle_connection_s: Positive = 30
    upstream_dns_cache_s: Positive = 30
    first_byte_timeout_s: Positive = 600
    chunk_idle_timeout_s: Positive = 300
    realtime_sessions_max: Positive = 500
    realtime_max_message_bytes: Positive = 16 * 1024 * 1024
    realtime_idle_timeout_s: Positive = 600
    realtime_session_timeout_s: Positive = 3_600
    request_timeout_s: Positive = 3_600
    client_gone_drain_s: NotNegative = 30
    client_gone_drain_bytes: NotNegative = 8 * 1024 * 1024
    shutdown_drain_s: NotNegative = 600
    shutdown_idle_grace_s: NotNegative = 5
    roll_wait_s: NotNegative = 10

    default_max_output_tokens: Positive = 4_096
    hold_step_tokens: Positive = 2_048
    hidden_output_tokens_per_s: NotNegative = 200
    progress_interval_ms: Annotated[int, Meta(ge=50)] = 1_000
    hold_ttl_s: Positive = 120
    settled_record_ttl_s: Positive = 900
    report_record_ttl_s: Positive = 172_800
    overage_cap_nano: NotNegative = 100 * 1_000_000_000
    unpriced_models: Annotated[str, Meta(pattern="^(meter|refuse)$")] = "meter"

    charge_threshold_nano: Positive = 5 * 1_000_000_000
    auto_top_up_below_nano: NotNegative = 100_000_000
    charge_retry_days: tuple[Positive, ...] = (1, 3, 5, 7)
    charge_calls_max: Positive = 16
    charge_timeout_ms: Annotated[int, Meta(ge=100, le=300_000)] = 70_000
    charge_ask_again_s: Positive = 5
    charge_resend_after_s: Positive = 180

    flush_interval_ms: Positive = 100
    journal_entries_max: Positive = 500_000
    flush_batch_entries: Annotated[int, Meta(ge=1, le=10_000)] = 2_000
    reap_interval_ms: Positive = 1_000
    postgres_pool_max: Positive = 10

    webhook_private_hosts: tuple[str, ...] = ()
    webhook_timeout_ms: Annotated[int, Meta(ge=100, le=30_000)] = 10_000
    webhook_retry_s: tuple[Positive, ...] = (60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    webhook_calls_max: Positive = 32
    webhook_endpoint_calls_max: Positive = 4
    webhook_log_days: Positive = 7

    stripe_test_key: StripeTestKey = ""
    stripe_test_publishable_key: Annotated[str, Meta(pattern=r"^(?:pk_test_[A-Za-z0-9_]+)?\Z")] = ""
    stripe_test_webhook_secret: StripeSecret = ""
    stripe_live_key: StripeLiveKey = ""
    stripe_live_publishable_key: Annotated[str, Meta(pattern=r"^(?:pk_live_[A-Za-z0-9_]+)?\Z")] = ""
    stripe_live_webhook_secret: StripeSecret = ""
    stripe_url: Loopback = ""

    twilio_account_sid: Annotated[str, Meta(pattern=r"^(?:AC[0-9a-f]{32})?\Z")] = ""
    twilio_auth_token: Annotated[str, Meta(pattern=r"^[A-Za-z0-9]*\Z")] = ""
    twilio_verify_service_sid: Annotated[str, Meta(pattern=r"^(?:VA[0-9a-f]{32})?\Z")] = ""
    twilio_timeout_ms: Annotated[int, Meta(ge=1_000, le=60_000)] = 15_000
    twilio_url: Loopback = ""

    def secrets(self) -> list[str]:
        """Every secret text in the settings, passwords of the engines as written and decoded: logs mask them."""
        logins = [url.partition("://")[2].rpartition("@")[0] for url in (self.redis_url, self.postgres_url)]
        passwords = [login.partition(":")[2] for login in logins]
        cards = [self.stripe_test_key, self.stripe_live_key, self.twilio_auth_token]
        events = [self.stripe_test_webhook_secret, self.stripe_live_webhook_secret]
        known = [self.master_key, *self.provider_keys.values(), *passwords, *map(unquote, passwords), *cards, *events]
        return [secret for secret in known if secret]


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
        values[name] = _json(ENV_PREFIX + name.upper(), raw) if name in JSON_SETTINGS else raw
    return values


def _json(name: str, raw: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        raise ConfigurationError(f"{name} is not JSON") from None


def _check(settings: Settings) -> None:
    if 2 * settings.settle_keep_s > settings.settled_record_ttl_s:
        raise ConfigurationError("settled_record_ttl_s must be at least twice settle_keep_s")
    if 2 * settings.redis_wait_timeout_ms > settings.redis_timeout_ms:
        raise ConfigurationError("redis_timeout_ms must be at least twice redis_wait_timeout_ms")
    if settings.charge_resend_after_s * 1_000 < 2 * settings.charge_timeout_ms:
        raise ConfigurationError("charge_resend_after_s must be at least twice charge_timeout_ms")
    if list(settings.charge_retry_days) != sorted(set(settings.charge_retry_days)):
        raise ConfigurationError("charge_retry_days must rise: they are counted from the day of the first decline")
    if settings.upstream_map and not settings.test_mode:
        raise ConfigurationError(
            "OBOL_UPSTREAM_MAP sends a provider's traffic and keys elsewhere, so it is refused unless OBOL_TEST_MODE=1"
        )
    if settings.fail_point_file and not settings.test_mode:
        raise ConfigurationError("OBOL_FAIL_POINT_FILE has processes killed, so it is refused unless OBOL_TEST_MODE=1")
    _check_money_in(settings)
    for name, key in settings.provider_keys.items():
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigurationError(
                f"{PROVIDER_KEY_PREFIX}{name.upper()} has a space, a line break or another character that no key has"
            )
    for origin, target in settings.upstream_map.items():
        for url in (origin, target):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
                raise ConfigurationError(f"OBOL_UPSTREAM_MAP: {url!r} is not an origin such as http://127.0.0.1:9000")


def _check_money_in(settings: Settings) -> None:
    for mode in ("test", "live"):
        key, public = getattr(settings, f"stripe_{mode}_key"), getattr(settings, f"stripe_{mode}_publishable_key")
        if bool(key) != bool(public):
            name = f"OBOL_STRIPE_{mode.upper()}"
            raise ConfigurationError(f"{name}_KEY and {name}_PUBLISHABLE_KEY are set both, or neither")
    twilio = (settings.twilio_account_sid, settings.twilio_auth_token, settings.twilio_verify_service_sid)
    if any(twilio) and not all(twilio):
        names = "OBOL_TWILIO_ACCOUNT_SID, OBOL_TWILIO_AUTH_TOKEN and OBOL_TWILIO_VERIFY_SERVICE_SID"
        raise ConfigurationError(f"{names} are set all, or none")
    if (settings.stripe_url or settings.twilio_url) and not settings.test_mode:
        raise ConfigurationError(
            "OBOL_STRIPE_URL and OBOL_TWILIO_URL send keys elsewhere, so they are refused unless OBOL_TEST_MODE=1"
        )
