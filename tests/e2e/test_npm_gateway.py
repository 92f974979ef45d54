"""Calls through the gateway, and the login, with the published versions of @lavapayments/nodejs."""

from __future__ import annotations

import json
import re
import time
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from demonstration import Demonstration
from lava_driver import VERSIONS, LavaDriver
from obol_sdk import Obol
from obol_sdk.models import Customer

EACH = pytest.mark.parametrize("version", VERSIONS)
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
MESSAGE = {"model": "claude-haiku-4-5", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
LOGIN_VERSIONS = ("9.0.0", "10.1.0", "11.1.0", "11.2.0")
RECORDED_TIMEOUT_S = 10


def payer(demo: Demonstration, version: str) -> dict[str, str]:
    """The demo customer and the demo meter, by the names of a version's era."""
    of = demo.demo
    if version.startswith("2."):
        return {"connection_secret": of["connection_secret"], "product_secret": of["product_secret"]}
    name = "connection_id" if version.startswith("8.") else "customer_id"
    return {name: of["connection_id"], "meter_slug": of["meter_slug"]}


def recorded(lava: LavaDriver, version: str, request_id: str) -> dict[str, Any]:
    """The request as the version shows it; the row follows the answer within a moment."""
    deadline_s = time.monotonic() + RECORDED_TIMEOUT_S
    while (answer := lava.call(version, "requests.retrieve", request_id)).error and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert (answer.error, answer.broken) == (None, [])
    return dict(answer.value)


def openai_base_url(lava: LavaDriver, version: str) -> str:
    return str(lava.read(version, "openaiUrl" if version == "2.5.0" else "providers.openai"))


def ask(url: str, token: str, body: dict[str, Any]) -> httpx2.Response:
    answer = httpx2.post(url, headers={"Authorization": f"Bearer {token}"}, json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer


@EACH
def test_a_token_and_a_base_url(demo: Demonstration, lava: LavaDriver, version: str) -> None:
    token = lava.call(version, "generateForwardToken", payer(demo, version)).value
    answer = ask(f"{openai_base_url(lava, version)}/chat/completions", token, CHAT)
    row = recorded(lava, version, answer.headers["x-lava-request-id"])
    assert row["connection_id"] == row["customer_id"] == demo.demo["connection_id"]
    assert row["meter_id"] == demo.demo["meter_id"]
    tokens = row["model_usage"]["total_tokens"]
    assert float(row["charge"]["amount"]) == pytest.approx(tokens * 0.00002)


@EACH
def test_a_token_of_null_is_a_token_of_nothing(demo: Demonstration, lava: LavaDriver, version: str) -> None:
    """`null` stays in the JSON of a token, and is the same as absent: the call is the merchant's own."""
    nobody: dict[str, Any] = dict.fromkeys(payer(demo, version))
    token = lava.call(version, "generateForwardToken", nobody).value
    assert None in json.loads(b64decode(token)).values()
    answer = ask(f"{openai_base_url(lava, version)}/chat/completions", token, CHAT)
    row = recorded(lava, version, answer.headers["x-lava-request-id"])
    assert (row["customer_id"], row["meter_id"], float(row["charge"]["amount"])) == (None, None, 0)


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_the_seeds_token_is_the_merchants_own_from_8_on(demo: Demonstration, lava: LavaDriver, version: str) -> None:
    """The trap that docs/clients.md warns of: these versions drop the secrets, and nobody is charged."""
    token = lava.call(version, "generateForwardToken", payer(demo, "2.5.0")).value
    assert json.loads(b64decode(token)) == {"secret_key": demo.demo["secret_key"]}
    answer = ask(f"{openai_base_url(lava, version)}/chat/completions", token, CHAT)
    row = recorded(lava, version, answer.headers["x-lava-request-id"])
    assert (row["billing_mode"], row["customer_id"], float(row["charge"]["amount"])) == ("merchant", None, 0)


@pytest.mark.parametrize("version", VERSIONS[4:])
def test_billing_disabled(demo: Demonstration, lava: LavaDriver, version: str) -> None:
    token = lava.call(version, "generateForwardToken", {**payer(demo, version), "disable_billing": True}).value
    answer = ask(f"{openai_base_url(lava, version)}/chat/completions", token, CHAT)
    row = recorded(lava, version, answer.headers["x-lava-request-id"])
    assert (row["customer_id"], float(row["charge"]["amount"])) == (demo.demo["connection_id"], 0)


@pytest.mark.parametrize("version", VERSIONS[5:])
def test_gateway(demo: Demonstration, lava: LavaDriver, version: str) -> None:
    target = "https://api.openai.com/v1/chat/completions?x=1&y=2"
    answer = lava.call(version, "gateway", target, {"body": CHAT, **payer(demo, version)})
    assert answer.value["choices"][0]["message"]["content"]
    refused = lava.call(version, "gateway", target, {"body": CHAT, **payer(demo, version), "customer_id": "nobody"})
    assert refused.refusal()[0] == 404
    own = lava.call(version, "gateway", "https://api.openai.com/v1/models", {"method": "GET"})
    assert own.value["object"] == "list"


def test_gateway_in_another_dialect(demo: Demonstration, lava: LavaDriver) -> None:
    target, body = "https://api.anthropic.com/v1/messages", {**CHAT, "model": "claude-haiku-4-5"}
    answer = lava.call("11.2.0", "gateway", target, {"body": body, "format": "openai", **payer(demo, "11.2.0")})
    assert (answer.value["object"], answer.value["model"]) == ("chat.completion", "claude-haiku-4-5")


@EACH
def test_every_base_url_of_a_provider(demo: Demonstration, lava: LavaDriver, version: str) -> None:
    """The provider behind each is known: a GET passes, whatever the provider answers."""
    names = ("openai", "anthropic", "mistral", "deepseek", "xai", "google", "googleOpenaiCompatible")
    old = version == "2.5.0"
    urls = {name: lava.read(version, f"{name}Url") for name in names} if old else lava.read(version, "providers")
    assert len(urls) == {"2.5.0": 7, "11.2.0": 28}.get(version, 27)
    token = lava.call(version, "generateForwardToken", payer(demo, version)).value
    with httpx2.Client(headers={"Authorization": f"Bearer {token}"}, timeout=30) as http:
        for name, url in urls.items():
            answer = http.get(f"{url}/models")
            assert answer.status_code in (200, 404), (name, answer.text)
            assert "x-lava-request-id" in answer.headers, (name, answer.text)


# Mistakes


@pytest.fixture(scope="module")
def poor(demo: Demonstration) -> Iterator[tuple[Customer, Customer]]:
    """A customer without credit, and one who is deleted."""
    with Obol(demo.demo["secret_key"], base_url=demo.url) as obol:
        without, gone = obol.customers.create(), obol.customers.create()
        obol.customers.delete(gone.customer_id)
        yield without, gone


def of_era(version: str, customer: str, meter: str) -> dict[str, str]:
    """The fields of a version's tokens."""
    if version.startswith("2."):
        return {"connection_secret": customer, "product_secret": meter}
    return {"connection_id" if version.startswith("8.") else "customer_id": customer, "meter_slug": meter}


def refused(lava: LavaDriver, version: str, fields: dict[str, Any], *, key: str | None = None, **call: Any) -> Any:
    """Status and code of a call with a token of these fields."""
    token = lava.call(version, "generateForwardToken", fields, key=key).value
    url = call.pop("url", f"{openai_base_url(lava, version)}/chat/completions")
    answer = httpx2.post(url, headers={"Authorization": f"Bearer {token}"}, json={**CHAT, **call}, timeout=30)
    error = answer.json()["error"]
    assert error["message"] and answer.headers["x-lava-request-id"]
    return answer.status_code, error["code"]


@EACH
def test_refusals(demo: Demonstration, lava: LavaDriver, poor: tuple[Customer, Customer], version: str) -> None:
    """Legacy secrets that are not known are 401, ids 404."""
    without, gone = poor
    secrets_era = version.startswith("2.")
    unknown = (401, "unauthorized") if secrets_era else (404, "connection_not_found")
    name = "connection_secret" if secrets_era else "customer_id"
    ours, meter = payer(demo, version), demo.demo["product_secret" if secrets_era else "meter_slug"]
    assert refused(lava, version, ours, key="aks_test_of_nobody") == (401, "unauthorized")
    assert refused(lava, version, of_era(version, "cons_test_of_nobody", meter)) == unknown
    assert refused(lava, version, of_era(version, getattr(gone, name), meter)) == unknown
    assert refused(lava, version, of_era(version, getattr(without, name), meter)) == (402, "insufficient_balance")
    customer = demo.demo["connection_secret" if secrets_era else "connection_id"]
    assert refused(lava, version, of_era(version, customer, "no-meter")) == (404, "meter_not_found")
    assert refused(lava, version, of_era(version, customer, "zero-fee")) == (403, "meter_not_on_plan")
    assert refused(lava, version, ours, model=5) == (400, "forward_model_invalid")
    elsewhere = f"{demo.base_url}forward?u=https://api.openai.com/v1/fine_tuning/jobs"
    assert refused(lava, version, ours, url=elsewhere) == (400, "forward_endpoint_not_supported")


@pytest.mark.parametrize("version", VERSIONS[4:])
def test_billing_cannot_be_disabled_for_nobody(demo: Demonstration, lava: LavaDriver, version: str) -> None:
    fields = {"meter_slug": demo.demo["meter_slug"], "disable_billing": True}
    assert refused(lava, version, fields) == (400, "invalid_request")


# Login: the SDK opens a browser, a person approves, the SDK gets a key of its own.


@pytest.mark.parametrize("version", LOGIN_VERSIONS)
def test_login(demo: Demonstration, lava: LavaDriver, version: str) -> None:
    lava.browser_address.unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as person:
        approved = person.submit(approve, lava.browser_address, demo.demo["secret_key"])
        answer = lava.call(version, "login", {"baseUrl": demo.url})
        assert "close this tab" in approved.result()
    assert (answer.error, answer.broken) == (None, [])
    key = answer.value["secret_key"]
    assert lava.call(version, "meters.list", key=key).value["data"]
    if version in ("9.0.0", "10.1.0"):
        check_wallet_keys(lava, version, key, answer.value)


@pytest.mark.parametrize("version", LOGIN_VERSIONS)
def test_a_code_of_nobody(demo: Demonstration, lava: LavaDriver, version: str) -> None:
    answer = lava.call(version, "exchangeAuthCode", {"code": "of nobody", "baseUrl": demo.base_url})
    told = "code is not known, was used before, or is older than 60 seconds"
    assert answer.error == f"Lava API Error: 400 Bad Request - {told}"


def check_wallet_keys(lava: LavaDriver, version: str, key: str, login: dict[str, Any]) -> None:
    """9.0 and 10.1 get a wallet key at login, and manage spend keys with it."""
    wallet_key, wallet_key_id = login["wallet_key"], login["wallet_key_id"]
    made = lava.call(version, "spendKeys.create", {"name": "Editor"}, key=wallet_key)
    assert (made.error, made.broken, made.value["wallet_id"]) == (None, [], login["wallet_id"])
    listed = lava.call(version, "walletKeys.list", key=key)
    assert (listed.error, listed.broken) == (None, [])
    assert wallet_key_id in {one["wallet_key_id"] for one in listed.value["data"]}
    rotated = lava.call(version, "walletKeys.rotate", wallet_key_id, key=key)
    assert (rotated.error, rotated.broken) == (None, [])
    assert lava.call(version, "spendKeys.list", key=wallet_key).refusal()[0] == 401
    revoked = lava.call(version, "walletKeys.revoke", wallet_key_id, key=key)
    assert (revoked.error, revoked.broken) == (None, [])
    assert lava.call(version, "walletKeys.revoke", wallet_key_id, key=key).refusal()[0] == 404
    assert lava.call(version, "spendKeys.list", key=rotated.value["key"]).refusal()[0] == 401


def approve(address: Path, secret_key: str) -> str:
    """What a person does in the browser: give a key, approve, be sent to the SDK's listener; what that says."""
    deadline_s = time.monotonic() + 30
    while not address.exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    page = address.read_text()
    with httpx2.Client(timeout=30) as http:
        asked = fields(http.get(page).text)
        shown = http.post(page, data={**asked, "secret_key": secret_key})
        sent_on = http.post(page, data=fields(shown.text))
        assert sent_on.status_code == 303, sent_on.text
        return http.get(sent_on.headers["location"]).text


def fields(page: str) -> dict[str, str]:
    """The hidden fields of a form."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
