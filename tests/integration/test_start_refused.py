"""A process that must not start says why in one line and ends with exit code 1."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from running import MASTER_KEY

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("worker",)])
async def test_fewer_shards_than_are_in_use(valkey, redis_client, postgres, tmp_path, command):
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute(
            "INSERT INTO journal_cursors (shard, last_id) SELECT n, CASE n WHEN 9 THEN 5 ELSE 0 END "
            "FROM generate_series(0, 15) AS n"
        )
    finally:
        await connection.close()
    await redis_client.set("obol:{9}:journal-n", 5)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OBOL_")} | {
        "OBOL_REDIS_URL": valkey,
        "OBOL_POSTGRES_URL": postgres,
        "OBOL_MASTER_KEY": MASTER_KEY,
        "OBOL_DATA_DIR": str(tmp_path),
        "OBOL_LEDGER_SHARDS": "9",
    }
    ended = await asyncio.to_thread(
        subprocess.run,
        (sys.executable, "-m", "gateway", *command),
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == ("obol: ledger_shards is 9, and shard 9 is in use: set it to 10 or more")
    assert "Traceback" not in ended.stderr
