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
    async with configured(redis_client, appendonly="no"):
        found = await checks.check(settings_for(valkey, postgres))
    assert [finding.state for finding in found if "since the last snapshot" in finding.text] == ["note"]


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
