"""`obol rebuild` restores what Redis lost, and changes nothing else unless it is told to."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from setbacks import Guarded, guarded
from worker_support import SHARDS

from gateway import rebuild
from gateway.__main__ import main as command_line
from gateway.ledger.recovery import Recovery
from gateway.ledger.wallets import now_ms
from gateway.rebuild import Wanted
from gateway.settings import Settings

SETTLED_NANO = 2_500_000


@pytest_asyncio.fixture
async def obol(valkey: str, redis_client: Any, postgres: str) -> AsyncIterator[Guarded]:
    async with guarded(valkey, postgres) as made:
        made.settings = Settings(redis_url=valkey, postgres_url=postgres, ledger_shards=SHARDS)
        yield made


async def run(obol: Guarded, **wanted: Any) -> tuple[int, str]:
    out = io.StringIO()
    code = await rebuild.rebuild(obol.settings, Wanted(**wanted), out)
    return code, out.getvalue()


async def used(obol: Guarded, name: str, shard: int) -> Any:
    ref = await obol.wallet(name, shard)
    await obol.report(ref, f"report-{name}")
    return ref


async def test_nothing_to_do(obol: Guarded) -> None:
    ref = await used(obol, "wal_1", 1)
    await obol.hold(ref, "open", expires_ms=10**15)
    assert await run(obol) == (0, "1 wallets compared, 0 restored, 0 differences left\n")
    await obol.flush()
    await obol.report(ref, "waits")
    assert (await run(obol))[0] == 0, "entries that wait in the journal are no difference"


async def test_what_redis_lost_is_told_and_then_restored(obol: Guarded) -> None:
    absent, behind, sound = await used(obol, "wal_1", 1), await used(obol, "wal_2", 2), await used(obol, "wal_3", 1)
    state = await obol.connection.command("DUMP", obol.keys.wallet(2, "wal_2"))
    await obol.report(behind, "lost")
    await obol.flush()
    await obol.connection.command("DEL", obol.keys.wallet(1, "wal_1"))
    await obol.connection.command("RESTORE", obol.keys.wallet(2, "wal_2"), 0, state, "REPLACE")

    code, text = await run(obol, dry_run=True)
    assert code == 1
    assert "wal_1  is not in Redis; would be restored" in text
    assert "wal_2  is behind: Redis has entry 2, 3 are recorded; would be restored" in text
    assert await obol.live(absent) is None and (await obol.live(behind) or ())[0] == 2

    assert (await run(obol, wallet_id="wal_3")) == (0, "1 wallets compared, 0 restored, 0 differences left\n")
    code, text = await run(obol, shard=1)
    assert code == 0 and "wal_1  is not in Redis; restored: balance nothing before, 0.9975000000 recorded" in text
    code, text = await run(obol, wallet_id="wal_2")
    assert code == 0 and "balance 0.9975000000 before, 0.9950000000 recorded, 0.0000000000 held" in text
    for ref in (absent, behind, sound):
        assert await obol.live(ref) == await obol.recorded(ref)
    assert (await run(obol))[0] == 0


async def test_an_empty_redis_is_refilled_from_the_command_line(
    obol: Guarded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refs = [await used(obol, f"wal_{number}", number % SHARDS) for number in range(6)]
    await obol.flush()
    await obol.connection.command("FLUSHALL")
    code, text = await run(obol, dry_run=True)
    assert code == 1 and text.count("is not in Redis") == 6
    code, text = await run(obol)
    assert code == 0 and "6 wallets compared, 6 restored, 0 differences left" in text
    for ref in refs:
        assert await obol.live(ref) == await obol.recorded(ref)
    assert (await obol.report(refs[0], "report-wal_0")).kind == "duplicate"


async def test_where_the_record_has_less_nothing_is_changed_unasked(obol: Guarded) -> None:
    """As after PostgreSQL was restored from a backup: what was spent and credited since is in Redis only."""
    ref, other = await used(obol, "wal_1", 1), await used(obol, "wal_2", 2)
    await obol.flush()
    for number in range(3):
        await obol.report(ref, f"later-{number}")
    await obol.wallets.credit(ref, "g2", "bundle", 77, at_ms=now_ms())
    for entry in await obol.journal.read(1, 2, 10):
        await obol.journal.trim(1, entry.number)  # recorded, and the record lost with PostgreSQL
    await obol.report(ref, "last")
    await obol.connection.command("HSET", obol.keys.wallet(2, "wal_2"), "prepaid", 5)
    before = await obol.live(ref), await obol.live(other)

    for dry_run in (True, False):
        code, text = await run(obol, dry_run=dry_run)
        assert code == 1
        assert "wal_1  is ahead: Redis has entry 7, 2 are recorded and entry 3 is nowhere; left as it is" in text
        assert "wal_2  differs (cycle, bundle, prepaid, overage): 0.0000000000 0.0000000000 0.0000000050" in text
        assert "shard 1: the journal's entries 3 to 6 were never recorded" in text
        assert (await obol.live(ref), await obol.live(other)) == before

    code, text = await run(obol, accept_postgres=True)
    assert code == 0 and "balance 0.9875000770 before, 0.9975000000 recorded" in text
    assert "the record goes on behind them" in text
    await obol.flush()
    assert await obol.live(ref) == await obol.recorded(ref) == (3, 0, 0, 10**9 - 2 * SETTLED_NANO, 0)
    assert await obol.live(other) == await obol.recorded(other)
    assert await obol.value(
        "SELECT array_agg(request_id ORDER BY request_id) FROM requests WHERE wallet_id = 'wal_1'"
    ) == [
        "last",
        "report-wal_1",
    ]
    assert (await run(obol))[0] == 0


async def test_a_wallet_out_of_use_can_be_restored_by_hand(obol: Guarded) -> None:
    ref = await used(obol, "wal_1", 1)
    await obol.flush()
    await Recovery(obol.connection, obol.keys).mark(1, [("wal_1", 0)], whatever=True)
    code, text = await run(obol, wallet_id="wal_1")
    assert code == 0 and "wal_1  is out of use; restored" in text
    assert await obol.live(ref) == await obol.recorded(ref)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--wallet", "wal_none"], "the wallet wal_none is not recorded"), (["--shard", "16"], "the shards 0 to 15")],
)
def test_what_does_not_exist_is_told(
    valkey: str, postgres: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], told: str
) -> None:
    monkeypatch.setenv("OBOL_REDIS_URL", valkey)
    monkeypatch.setenv("OBOL_POSTGRES_URL", postgres)
    assert command_line(["rebuild", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_wrong_usage(capsys: Any) -> None:
    for arguments in (["--wallet", "w", "--shard", "1"], ["--shard", "x"]):
        with pytest.raises(SystemExit) as ended:
            command_line(["rebuild", *arguments])
        assert ended.value.code == 2
