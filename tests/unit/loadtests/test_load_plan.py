from __future__ import annotations

import json
from pathlib import Path

import httptools
import pytest

from loadtests.cli import main, parser, plans
from loadtests.plan import Plan, PlanError, check_target
from loadtests.run import split
from loadtests.scenario import build, completions_path


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://localhost:8080/v1/", "http://[::1]:80", "https://127.9.9.9"]
)
def test_loopback_targets_are_accepted(url: str) -> None:
    assert check_target(url, owned=False) == url


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "https://10.0.0.1/v1/", "http://127.0.0.1.example.com", "http://127.0.0.1@example.com"],
)
def test_other_hosts_are_refused_unless_owned(url: str) -> None:
    with pytest.raises(PlanError, match="--i-own-this-target"):
        check_target(url, owned=False)
    assert check_target(url, owned=True) == url


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999", "http://a b"]
)
def test_what_is_no_url_is_refused_even_if_owned(url: str) -> None:
    with pytest.raises(PlanError, match="--target"):
        check_target(url, owned=True)


def test_the_command_refuses_a_foreign_target_and_names_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "http://127.0.0.1:1", "--compare", "http://example.com"]) == 2
    assert "--compare http://example.com is not on this machine's loopback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://127.0.0.1:8080/v1/", "/v1/forward?u=https://api.openai.com/v1/chat/completions"),
        ("http://127.0.0.1:8080/v1", "/v1/forward?u=https://api.openai.com/v1/chat/completions"),
        ("http://127.0.0.1:9000", "/v1/chat/completions"),
        ("http://127.0.0.1:9000/a/b?c=1", "/a/b?c=1"),
    ],
)
def test_the_path_follows_from_the_target(target: str, path: str) -> None:
    assert completions_path(target) == path


class Request:
    """What a strict HTTP parser reads."""

    def __init__(self, raw: bytes) -> None:
        self.headers: dict[str, str] = {}
        self.body = self.url = b""
        self.complete = False
        httptools.HttpRequestParser(self).feed_data(raw)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def test_reports_are_whole_requests_that_differ_by_their_id() -> None:
    plan = Plan(target="http://127.0.0.1:1/v1/", scenario="reports", key="k", meter_slug="m", connection_id="c")
    template = build(plan).template(0)
    first, second = (Request(template.render(number)) for number in (0, 123456))
    assert first.complete and second.complete
    assert (first.url, first.headers["authorization"]) == (b"/v1/requests", "Bearer k")
    bodies = [json.loads(request.body) for request in (first, second)]
    assert bodies[0]["request_id"] != bodies[1]["request_id"]
    assert (bodies[0]["meter_slug"], bodies[0]["connection_id"], bodies[0]["input_tokens"]) == ("m", "c", 100)


def test_a_mixed_scenario_keeps_the_weights() -> None:
    scenario = build(Plan(target="http://127.0.0.1:1", scenario="mixed", weights={"chat": 3, "stream": 1}))
    kinds = [scenario.template(number).kind for number in range(40)]
    assert (kinds.count("chat"), kinds.count("stream")) == (30, 10)
    assert all(Request(scenario.template(number).render(number)).complete for number in range(4))


@pytest.mark.parametrize(
    ("plan", "flag"),
    [
        (Plan(target="http://127.0.0.1:1", scenario="reports"), "--meter-slug"),
        (Plan(target="http://127.0.0.1:1", scenario="mixed", weights={"chat": 0}), "--weights"),
        (Plan(target="http://127.0.0.1:1", scenario="mixed", weights={"other": 1}), "--weights"),
        (Plan(target="http://127.0.0.1:1", key="a\r\nX: y"), "--key"),
    ],
)
def test_an_unusable_plan_names_its_flag(plan: Plan, flag: str) -> None:
    with pytest.raises(PlanError, match=flag):
        build(plan)


def test_shares_of_several_processes_add_up() -> None:
    shares = split(Plan(target="http://127.0.0.1:1", users=10, rate_per_s=1000), 3)
    assert sorted(share.users for share in shares) == [3, 3, 4]
    assert sum(share.rate_per_s for share in shares) == pytest.approx(1000)
    assert len({share.run_id for share in shares}) == 3
    with pytest.raises(PlanError, match="--processes"):
        split(Plan(target="http://127.0.0.1:1", users=2), 3)


def test_the_demo_file_gives_key_meter_and_connection(tmp_path: Path) -> None:
    demo = tmp_path / "demo.json"
    demo.write_text(
        json.dumps({"forward_token": "t", "secret_key": "s", "meter_slug": "m", "connection_id": "c", "other": 1})
    )
    arguments = parser().parse_args(
        ["--target", "http://127.0.0.1:1/v1/", "--scenario", "reports", "--demo-file", str(demo)]
    )
    (plan,) = plans(arguments, None)
    assert (plan.key, plan.meter_slug, plan.connection_id) == ("t", "m", "c")
    assert Request(build(plan).template(0).render(0)).headers["authorization"] == "Bearer s"
    demo.write_text("no json")
    with pytest.raises(PlanError, match="--demo-file"):
        plans(arguments, None)
