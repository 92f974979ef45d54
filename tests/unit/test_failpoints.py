"""Fail points: who is killed when, and that nobody is without test mode."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from gateway import settings
from gateway.errors import ConfigurationError
from gateway.failpoints import FailPoints, Order, of_settings


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    return found


@pytest.fixture
def points(tmp_path: Path) -> FailPoints:
    state = {"workers": [11, 12], "worker_pid": 13, "valkey_pid": None, "postgres_pid": 15}
    (tmp_path / "up.json").write_text(json.dumps(state))
    return FailPoints(tmp_path / "order", tmp_path)


def test_without_an_order_nobody_is_killed(points: FailPoints, kills: list[tuple[int, int]]) -> None:
    points.reached("held")
    assert kills == []


def test_the_nth_who_comes_kills_once(points: FailPoints, kills: list[tuple[int, int]], tmp_path: Path) -> None:
    (tmp_path / "order").write_text("settled:3:postgres\n")
    for point in ("settled", "held", "settled", "held"):
        points.reached(point)
    assert kills == []
    points.reached("settled")
    points.reached("settled")
    assert kills == [(15, signal.SIGKILL)]
    fired = json.loads((tmp_path / "order.fired").read_text())
    assert (fired["point"], fired["victim"], fired["pid"], fired["by"]) == ("settled", "postgres", 15, os.getpid())


def test_a_new_order_is_counted_from_its_beginning(
    points: FailPoints, kills: list[tuple[int, int]], tmp_path: Path
) -> None:
    for number in range(1, 3):
        (tmp_path / "order").write_text("held:2:worker")
        os.utime(tmp_path / "order", ns=(number, number))
        points.reached("held")
        assert len(kills) == number - 1
        points.reached("held")
    assert kills == [(13, signal.SIGKILL)] * 2


def test_a_gateway_is_its_own_victim_and_another_process_kills_any(
    points: FailPoints, kills: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "order").write_text("journalled:1:gateway")
    points.reached("journalled")
    monkeypatch.setattr(os, "getpid", lambda: 12)
    (tmp_path / "order").write_text("held:1:gateway")
    points.reached("held")
    assert [pid for pid, _ in kills] == [11, 12]


def test_a_victim_that_is_being_started_is_waited_for(
    points: FailPoints, kills: list[tuple[int, int]], tmp_path: Path
) -> None:
    (tmp_path / "order").write_text("held:1:valkey")
    points.reached("held")
    assert kills == [] and (tmp_path / "order").exists()


def test_the_middle_of_an_answer_begins_with_its_second_piece(
    points: FailPoints, kills: list[tuple[int, int]], tmp_path: Path
) -> None:
    (tmp_path / "order").write_text("mid_stream:1:worker")
    feed = points.in_the_middle_of(bytes.upper)
    assert feed(b"a") == b"A" and kills == []
    assert feed(b"b") == b"B" and kills == [(13, signal.SIGKILL)]


@pytest.mark.parametrize(
    ("order", "named"),
    [("nowhere:1:valkey", "'nowhere'"), ("held:0:valkey", "'0'"), ("held:x:valkey", "'x'"), ("held:1:init", "'init'")],
)
def test_an_order_that_is_none_is_told(order: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Order.parse(order)


def test_refused_without_test_mode() -> None:
    with pytest.raises(ConfigurationError, match="OBOL_TEST_MODE"):
        settings.load({"OBOL_FAIL_POINT_FILE": "order"})
    allowed = settings.load({"OBOL_FAIL_POINT_FILE": "order", "OBOL_TEST_MODE": "1"})
    assert of_settings(allowed.fail_point_file, allowed.data_dir) is not None
    assert of_settings(settings.load({}).fail_point_file, ".") is None
