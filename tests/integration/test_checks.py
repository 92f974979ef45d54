"""`obol check` on real engines: sound ones pass, and whatever would lose money is refused by name."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager

import asyncpg
import pytest
import redis.asyncio

from gateway import checks
from gateway.__main__ import main as obol
from gateway.checks import Finding, _redis_disk, _redis_kind
from gateway.ledger.server import Server
from gateway.settings import Settings

MASTER_KEY = "k" * 32


def settings_for(valkey: str, postgres: str, **changes) -> Settings:
    return Settings(redis_url=valkey, postgres_url=postgres, master_key=MASTER_KEY, **changes)


def failures(findings: list[Finding]) -> list[str]:
    return [f"{finding.part}: {finding.text}" for finding in findings if finding.state == "FAIL"]


@asynccontextmanager
async def configured(client: redis.asyncio.Redis, **changes: str):
    """The server with `changes` of its configuration, put back afterwards."""
    names = {name.replace("_", "-"): value for name, value in changes.items()}
    before = {name: (await client.config_get(name))[name] for name in names}
    for name, value in names.items():
        await client.config_set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            await client.config_set(name, value)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_sound_engines_pass(valkey, redis_client, postgres):
    async with configured(redis_client, appendfsync="always"):
        found = await checks.check(settings_for(valkey, postgres, provider_keys={"openai": "sk-canary"}))
    assert failures(found) == []
    text = "\n".join(finding.text for finding in found)
    assert "never evicts; no memory limit" in text
    assert "survives a crash" in text
    assert "migrated: 0" in text
    assert "keys for openai" in text
    for secret in ("sk-canary", MASTER_KEY, valkey.split("@")[0].rpartition(":")[2]):
        assert secret not in text


@pytest.mark.parametrize("limit_bytes", ["0", "100000000"])
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_an_evicting_redis_is_refused(valkey, redis_client, postgres, policy, limit_bytes):
    async with configured(redis_client, maxmemory=limit_bytes, maxmemory_policy=policy):
        found = await checks.check(settings_for(valkey, postgres))
    assert [text for text in failures(found) if f"maxmemory-policy is {policy}" in text and "noeviction" in text]
    assert len(failures(found)) == 1


async def test_a_limit_without_eviction_is_told(valkey, redis_client, postgres):
    async with configured(redis_client, maxmemory="100000000"):
        found = await checks.check(settings_for(valkey, postgres))
    assert failures(found) == []
    assert any("of 100,000,000 bytes used" in finding.text for finding in found)


@pytest.mark.parametrize(
    ("appendfsync", "state", "words"),
    [("always", "ok", "survives"), ("everysec", "note", "last second"), ("no", "note", "30 s")],
)
async def test_the_bound_of_loss_follows_from_appendfsync(valkey, redis_client, postgres, appendfsync, state, words):
    async with configured(redis_client, appendfsync=appendfsync):
        found = await checks.check(settings_for(valkey, postgres))
    assert [finding.state for finding in found if words in finding.text] == [state]


async def test_without_an_append_only_file_the_loss_is_told(valkey, redis_client, postgres):
    async with configured(redis_client, appendonly="no", save="3600 1"):
        found = await checks.check(settings_for(valkey, postgres))
    assert [finding.state for finding in found if "since the last snapshot" in finding.text] == ["note"]


async def test_a_server_that_writes_nothing_at_all_is_refused(valkey, redis_client, postgres):
    async with configured(redis_client, appendonly="no", save=""):
        told = failures(await checks.check(settings_for(valkey, postgres)))
    assert [text for text in told if "a restart loses every wallet" in text] == told
    assert len(told) == 1


@pytest.mark.parametrize(
    ("appendfsync", "keep_s", "state", "words"),
    [
        ("everysec", 5, "ok", "keep settles for 5 s and send them again: a charge is lost only if Redis' machine"),
        ("everysec", 5, "ok", "within the same 2 s"),
        ("everysec", 2, "note", "2 s of settles may be lost: set it to 5 or more"),
        ("no", 5, "note", "35 s of settles may be lost: set it to 38 or more"),
        ("no", 40, "ok", "within the same 35 s"),
    ],
)
async def test_the_bound_that_remains_follows_from_what_gateways_keep(
    valkey, redis_client, postgres, appendfsync, keep_s, state, words
):
    async with configured(redis_client, appendfsync=appendfsync):
        found = await checks.check(settings_for(valkey, postgres, settle_keep_s=keep_s))
    assert [finding.state for finding in found if words in finding.text] == [state]
    assert failures(found) == []


async def test_with_fsync_before_each_answer_no_gateway_has_to_help(valkey, redis_client, postgres):
    async with configured(redis_client, appendfsync="always"):
        found = await checks.check(settings_for(valkey, postgres))
    assert not [finding for finding in found if "settle" in finding.text and "acknowledged settle" not in finding.text]


@pytest.mark.parametrize(
    ("wanted", "replicas", "state", "words"),
    [
        (0, 0, None, ""),
        (0, 2, "note", "2 replicas, asynchronous: a failover loses what they had not got"),
        (1, 2, "ok", "acknowledged when 1 of 2 replicas have it (waits 100 ms at most)"),
        (2, 1, "FAIL", "redis_wait_replicas is 2, and 1 are connected"),
    ],
)
def test_what_a_failover_may_lose(wanted, replicas, state, words):
    server = Server(append_only=True, fsync="always", replicas=replicas)
    found = list(checks._redis_bounds(server, Settings(redis_wait_replicas=wanted)))
    assert [finding.state for finding in found] == ([] if state is None else [state])
    assert all(words in finding.text for finding in found)


async def test_a_lowered_number_of_shards_is_refused_and_a_raised_one_told(valkey, redis_client, postgres):
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute(
            "INSERT INTO merchants (merchant_id, account_id, mode, name) VALUES ('m', 'a', 'test', 'M');"
            "INSERT INTO wallets (wallet_id, merchant_id, shard) VALUES ('w3', 'm', 3), ('w9', 'm', 9);"
            "INSERT INTO journal_cursors (shard) SELECT generate_series(0, 9)"
        )
    finally:
        await connection.close()
    assert failures(await checks.check(settings_for(valkey, postgres, ledger_shards=10))) == []
    (told,) = failures(await checks.check(settings_for(valkey, postgres, ledger_shards=9)))
    assert "ledger_shards is 9, and 1 wallets lie on shards beyond it" in told
    assert "at least 10" in told
    found = await checks.check(settings_for(valkey, postgres, ledger_shards=16))
    assert failures(found) == []
    assert [finding.state for finding in found if "ledger_shards was 10 and is 16" in finding.text] == ["note"]


def test_replicas_clusters_old_servers_and_failed_writes_are_refused():
    info = {"redis_version": "6.0.16", "role": "slave", "cluster_enabled": 1}
    assert [finding.state for finding in _redis_kind(info)] == ["FAIL"] * 3
    assert list(_redis_kind({"redis_version": "10.0.1", "role": "master", "cluster_enabled": 0})) == []
    failing = list(_redis_disk({"aof_enabled": 1, "aof_last_write_status": "err"}, None))
    assert [finding.state for finding in failing] == ["FAIL", "note"]


async def test_engines_that_do_not_answer_are_named_without_their_passwords(postgres):
    port = closed_port()
    found = await checks.check(
        settings_for(f"redis://:hunter2@127.0.0.1:{port}/0", f"postgresql://someone:hunter2@127.0.0.1:{port}/obol")
    )
    told = failures(found)
    assert [
        text.startswith(f"{part}: 127.0.0.1:{port}") for part, text in zip(("Redis", "PostgreSQL"), told, strict=True)
    ]
    assert all(f"127.0.0.1:{port} is not usable" in text and "hunter2" not in text for text in told)


async def test_a_wrong_password_is_told_without_it(valkey, redis_client, postgres):
    wrong = valkey.replace(valkey.split("@")[0].rpartition(":")[2], "hunter2")
    told = failures(await checks.check(settings_for(wrong, postgres)))
    assert len(told) == 1
    assert "is not usable" in told[0]
    assert "hunter2" not in told[0]


async def test_what_is_not_set_is_named():
    told = failures(await checks.check(Settings()))
    assert [name for name in ("OBOL_REDIS_URL", "OBOL_POSTGRES_URL", "OBOL_MASTER_KEY") if name in "\n".join(told)] == [
        "OBOL_REDIS_URL",
        "OBOL_POSTGRES_URL",
        "OBOL_MASTER_KEY",
    ]


async def test_a_database_without_or_behind_the_schema_is_refused(valkey, redis_client, postgres):
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute("DELETE FROM schema_migrations WHERE name = '0001_initial'")
        assert failures(await checks.check(settings_for(valkey, postgres))) == [
            "PostgreSQL: not migrated, run obol migrate: 0001_initial"
        ]
        await connection.execute("DROP TABLE schema_migrations")
        assert "0001_initial, 0002" in failures(await checks.check(settings_for(valkey, postgres)))[0]
    finally:
        await connection.close()


async def test_a_newer_schema_is_a_note(valkey, redis_client, postgres):
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute("INSERT INTO schema_migrations (name) VALUES ('9999_future')")
    finally:
        await connection.close()
    found = await checks.check(settings_for(valkey, postgres))
    assert failures(found) == []
    assert [finding.state for finding in found if "9999_future" in finding.text] == ["note"]


async def test_a_read_only_database_is_refused(valkey, redis_client, postgres):
    connection = await asyncpg.connect(postgres)
    try:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    finally:
        await connection.close()
    assert failures(await checks.check(settings_for(valkey, postgres))) == ["PostgreSQL: it is read-only"]


async def test_configuration_is_checked(valkey, redis_client, postgres):
    settings = settings_for(
        valkey,
        postgres,
        provider_keys={"nobody": "sk"},
        test_mode=True,
        upstream_map={"https://api.openai.com": "http://127.0.0.1:9"},
    )
    found = await checks.check(settings)
    assert failures(found) == []
    notes = "\n".join(finding.text for finding in found if finding.state == "note")
    assert "OBOL_PROVIDER_KEY_NOBODY names no provider" in notes
    assert "no provider keys" in notes
    assert "traffic of 1 origins goes elsewhere" in notes


def test_a_short_master_key_is_refused():
    assert checks._master_key("short") == Finding(
        "FAIL", "configuration", "OBOL_MASTER_KEY needs at least 32 characters"
    )


def test_the_command_prints_a_table_and_returns_whether_it_is_usable(valkey, postgres, monkeypatch, capsys, tmp_path):
    for name, value in (("REDIS_URL", valkey), ("POSTGRES_URL", postgres), ("MASTER_KEY", MASTER_KEY)):
        monkeypatch.setenv(f"OBOL_{name}", value)
    assert obol(["check", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("\nusable\n")
    monkeypatch.setenv("OBOL_MASTER_KEY", "")
    assert obol(["check", "--data-dir", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL  configuration  OBOL_MASTER_KEY is not set" in out
    assert "not usable: 1 of" in out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {},
            [
                "test merchants: the sandbox",
                "live merchants: not configured (OBOL_STRIPE_LIVE_KEY)",
                "shown in the log",
            ],
        ),
        (
            {"stripe_test_key": "sk_test_canary", "stripe_live_key": "sk_live_canary"},
            ["Stripe in its test mode", "live merchants: Stripe", "STRIPE_TEST_WEBHOOK_SECRET", "STRIPE_LIVE_WEBHOOK"],
        ),
        (
            {"stripe_live_key": "sk_live_canary", "stripe_live_webhook_secret": "whsec_canary"},
            ["live merchants: Stripe"],
        ),
        ({"twilio_account_sid": "ACcanary"}, ["Twilio Verify"]),
    ],
)
def test_who_takes_money_and_sends_codes_is_told_without_a_secret(changes, told):
    text = "\n".join(finding.text for finding in checks._money_in(Settings(**changes)))
    assert [words for words in told if words not in text] == []
    assert "canary" not in text
    assert ("WEBHOOK_SECRET" in text) == ("stripe_live_webhook_secret" not in changes and "stripe_live_key" in changes)
