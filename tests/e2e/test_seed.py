"""The snippets of the page that this project began with, in JavaScript and in Python, against `obol up --demo`.

The page was written for SDK 6, which the registry does not have. Of the versions that it has, 2.5.0 makes tokens of the
page's secrets, 8.0.0 and 8.1.0 have `checkoutSessions`, `connections` and `requests.create`, and from 9.0.0 on there is
no `connections`. So each snippet runs on every published version that can run it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from demonstration import Demonstration
from lava_driver import VERSIONS
from obol_sdk import Obol
from obol_sdk.models import CheckoutSession, Customer, Meter, Request

MESSAGES = [{"role": "user", "content": "Hello"}]
WITH_SECRETS = VERSIONS[:1]
WITH_CONNECTIONS = VERSIONS[:3]
WITH_CHECKOUT = VERSIONS[1:]
WITH_REPORTS = VERSIONS[1:]
Seed = Callable[..., dict[str, Any]]


class UseCase(NamedTuple):
    """One of the page's kinds of usage: the meter's unit and rate, what is reported, what it costs."""

    unit: Any
    rate: str
    usage: dict[str, Any]
    charge: str


USE_CASES = {
    "LLM": UseCase("tokens_1m", "20", {"input_tokens": 100, "output_tokens": 500}, "0.012"),
    "text-to-speech": UseCase("characters_1m", "15", {"input_characters": 1_000, "output_seconds": 61.5}, "0.015"),
    "speech-to-text": UseCase("minutes", "0.006", {"input_seconds": 90.0, "output_characters": 400}, "0.009"),
    "video": UseCase("minutes", "0.5", {"output_seconds": 6.0}, "0.05"),
    "per request": UseCase("requests", "0.001", {}, "0.001"),
}


@pytest.fixture(scope="module")
def obol(demo: Demonstration) -> Iterator[Obol]:
    with Obol(demo.demo["secret_key"], base_url=demo.url) as client:
        yield client


@pytest.fixture(scope="module")
def payer(obol: Obol) -> Customer:
    """On a $25 plan with the $0.02 per 1K tokens meter, as in the page's example."""
    return obol.customers.retrieve("demo-customer")


@pytest.fixture(scope="module")
def seed(node: tuple[str, Path], demo: Demonstration) -> Seed:
    """A snippet of the page, on a version of the SDK."""
    program, packages = node
    environment = {"LAVA_SECRET_KEY": demo.demo["secret_key"], "BASE": demo.base_url, "CHECKOUT": demo.url}

    def run(version: str, snippet: str, **given: Any) -> dict[str, Any]:
        command = [program, "seed.mjs", version, snippet, json.dumps(given)]
        ran = subprocess.run(
            command, cwd=packages, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        return dict(json.loads(ran.stdout))

    return run


def recorded(obol: Obol, request_id: str) -> Request:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        found = [row for row in obol.requests.list().data if row.request_id == request_id]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"{request_id} was not recorded")


def check_call(obol: Obol, payer: Customer, request_id: str) -> None:
    """Step 5: each request costs tokens x 0.02 / 1K, taken from the balance of $25."""
    row = recorded(obol, request_id)
    assert (row.customer_id, row.status) == (payer.customer_id, "completed")
    assert row.charge.amount == row.model_usage.total_tokens * Decimal("0.00002") > 0


def check_link(session_token: str, demo: Demonstration, link: str) -> None:
    """The token is what the checkout library decodes; the link leads to a checkout's first step."""
    told = json.loads(b64decode(session_token))
    assert (told["base"], told["secret"][:9]) == (f"{demo.url}/", "css_test_")
    page = httpx2.get(link, follow_redirects=True)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert str(page.url).startswith(f"{demo.url}/checkout/css_test_")
    assert '<h1 id="heading">Your phone number</h1>' in page.text


# JavaScript


@pytest.mark.parametrize("version", WITH_SECRETS)
def test_step_2_in_javascript(demo: Demonstration, obol: Obol, payer: Customer, seed: Seed, version: str) -> None:
    given = {"connectionSecret": payer.connection_secret, "productSecret": demo.demo["product_secret"]}
    told = seed(version, "makeAIRequest", **given, messages=MESSAGES)
    assert (told["status"], told["answer"]["object"]) == (200, "chat.completion")
    check_call(obol, payer, told["requestId"])


@pytest.mark.parametrize("version", WITH_CHECKOUT)
def test_step_4_in_javascript(demo: Demonstration, obol: Obol, seed: Seed, version: str) -> None:
    plan_id, user = demo.demo["subscription_config_id"], f"reader-of-{version}"
    token = seed(version, "createCheckoutSession", planId=plan_id, userId=user)["checkout_session_token"]
    email = seed(version, "checkoutLink", planId=plan_id, customerId=user)["body"]
    check_link(token, demo, email.removeprefix("Click here to subscribe: "))
    check_sessions(obol.checkout_sessions.list(reference_id=user).data, plan_id)


def check_sessions(sessions: list[CheckoutSession], plan_id: str) -> None:
    assert [(one.checkout_mode, one.origin_url, one.plan_id) for one in sessions] == [
        ("subscription", "https://yourapp.com", plan_id)
    ] * 2


@pytest.mark.parametrize("version", WITH_CONNECTIONS)
def test_the_connections_secret_in_javascript(payer: Customer, seed: Seed, version: str) -> None:
    told = seed(version, "retrieveSecret", connectionId=payer.customer_id)
    assert told["connectionSecret"] == payer.connection_secret


@pytest.mark.parametrize("version", WITH_REPORTS)
def test_path_2_in_javascript(obol: Obol, payer: Customer, seed: Seed, version: str) -> None:
    """By the page's secrets, which every version passes on as they are."""
    name, case = list(USE_CASES.items())[WITH_REPORTS.index(version) % len(USE_CASES)]
    meter = meter_of(obol, name, case)
    told = seed(
        version,
        "reportUsage",
        connectionSecret=payer.connection_secret,
        productSecret=meter.product_secret,
        usage=case.usage,
    )
    assert (told["customer_id"], told["metadata"]) == (payer.customer_id, {"feature": "chat"})
    assert Decimal(told["charge"]["amount"]) == Decimal(case.charge)


def meter_of(obol: Obol, name: str, case: UseCase) -> Meter:
    tiers: Any = [{"start": 0, "rate": case.rate}]
    return obol.meters.create(name=name, rate_type="fixed", tier_type=case.unit, tiers=tiers)


# Python


def test_step_2_in_python(demo: Demonstration, obol: Obol, payer: Customer) -> None:
    token = obol.forward_token(connection_secret=payer.connection_secret, product_secret=demo.demo["product_secret"])
    answer = httpx2.post(
        f"{demo.base_url}forward?u=https://api.openai.com/v1/chat/completions",
        headers={"Authorization": f"Bearer {token}"},
        json={"model": "gpt-4o-mini", "messages": MESSAGES},
    )
    assert answer.json()["object"] == "chat.completion"
    check_call(obol, payer, answer.headers["x-lava-request-id"])


def test_step_4_in_python(demo: Demonstration, obol: Obol, payer: Customer) -> None:
    plan_id = demo.demo["subscription_config_id"]
    sessions = [
        obol.checkout_sessions.create(
            checkout_mode="subscription",
            origin_url="https://yourapp.com",
            plan_id=plan_id,
            reference_id="user-of-python",
        )
        for _ in range(2)
    ]
    token = sessions[0].checkout_session_token
    check_link(token, demo, f"{demo.url}/{token}")
    check_sessions(sessions, plan_id)
    assert obol.connections.retrieve(payer.customer_id).connection_secret == payer.connection_secret


@pytest.mark.parametrize("name", USE_CASES)
def test_path_2_in_python(obol: Obol, payer: Customer, name: str) -> None:
    case = USE_CASES[name]
    meter = meter_of(obol, name, case)
    told = obol.requests.create(
        request_id=f"python-{meter.meter_id}",
        connection_secret=payer.connection_secret,
        product_secret=meter.product_secret,
        **case.usage,
    )
    assert (told.customer_id, told.charge.amount) == (payer.customer_id, Decimal(case.charge))
