"""The start of Obol for the bench, against a stand-in that writes the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtests.peers.obol import obol

STAND_IN = """
import http.server, json, os, pathlib, signal, sys
data = pathlib.Path(sys.argv[sys.argv.index("--data-dir") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
data.mkdir()
outside = pathlib.Path(sys.argv[1]).with_name("cluster")
outside.mkdir()
(data / "postgres").symlink_to(outside)
environment = {name: value for name, value in os.environ.items() if name.startswith("OBOL_")}
demo = {"forward_token": "token", "argv": sys.argv[1:], "environment": environment}
(data / "demo.json").write_text(json.dumps(demo))
up = {"base_url": f"http://127.0.0.1:{server.server_port}/v1/", "workers": [os.getpid()], "valkey_pid": os.getpid(),
      "worker_pid": os.getppid(), "postgres_pid": None}
(data / "up.json").write_text(json.dumps(up))
pathlib.Path(sys.argv[1]).write_text(json.dumps(demo))
server.serve_forever()
"""


def test_it_is_started_with_billing_on_pinned_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBOL_REDIS_URL", "redis://elsewhere")
    script, seen = tmp_path / "stand_in.py", tmp_path / "seen.json"
    script.write_text(STAND_IN)
    core = min(os.sched_getaffinity(0))
    with obol("http://127.0.0.1:9", [core], (sys.executable, str(script), str(seen))) as server:
        assert server.path == "/v1/forward?u=https://api.openai.com/v1/chat/completions"
        assert (server.key, len(server.companions)) == ("token", 2)
        assert os.sched_getaffinity(server.pid) == {core}
    assert not seen.with_name("cluster").exists()
    said = json.loads(seen.read_text())
    assert said["argv"][1:7] == ["up", "--demo", "--workers", "1", "--port", "0"]
    assert json.loads(said["environment"].pop("OBOL_UPSTREAM_MAP")) == {"https://api.openai.com": "http://127.0.0.1:9"}
    assert said["environment"] == {"OBOL_TEST_MODE": "1"}
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_failed_start_tells_the_end_of_its_log() -> None:
    started = time.monotonic()
    program = (sys.executable, "-c", "raise SystemExit('the port is taken')")
    with (
        pytest.raises(subprocess.SubprocessError, match="the port is taken"),
        obol("http://127.0.0.1:9", [], program),
    ):
        raise AssertionError("it did not start")
    assert time.monotonic() - started < 10
