"""Every method of every published version of @lavapayments/nodejs, unmodified, against a running `obol up --demo`."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from demonstration import Demonstration
from lava_driver import VERSIONS, Answer, LavaDriver
from lava_scenario import BY_ID, MISTAKES, SCENARIO, Shop
from obol_sdk import Obol

EACH = pytest.mark.parametrize("version", VERSIONS)
WALLET_KEYS = {"walletKeys.list", "walletKeys.rotate", "walletKeys.revoke"}
OTHERS = {"request", "generateForwardToken", "gateway", "login", "exchangeAuthCode", *WALLET_KEYS}
"""Tested in test_npm_gateway.py; `request` is what all are made of."""
DELETIONS = {name for name in BY_ID if name.endswith((".delete", ".deletePlan", ".revoke"))}
LISTED = ("2.5.0", "usage.retrieve")
"""Its type says that the report is a list of what it is; it never was one, and later versions say so."""
MISTYPED = {
    # It did not know reported requests yet, which have no model; later versions do, and may have none.
    "2.5.0 requests.list.data[0].model: null is not a string",
    "2.5.0 requests.retrieve.model: null is not a string",
}


@pytest.fixture(scope="module")
def obol(demo: Demonstration) -> Iterator[Obol]:
    """Our own client makes what the published ones are to find."""
    with Obol(demo.demo["secret_key"], base_url=demo.url) as client:
        yield client


@EACH
def test_every_method(demo: Demonstration, obol: Obol, lava: LavaDriver, version: str) -> None:
    """Each answers 2xx with every field that its own types promise, of the type they promise."""
    known, shop, faults = lava.methods(version), Shop(obol, version, demo.hooks.url), []
    for method, arguments in SCENARIO:
        if method in known:
            answer = lava.call(version, method, *arguments(shop))
            shop.answers[method] = answer.value
            if (version, method) == LISTED:
                answer = answer._replace(broken=lava.broken(version, method, [answer.value]))
            faults += faults_of(version, method, answer)
    assert faults == []
    assert known - OTHERS - {method for method, _ in SCENARIO} == set()


def faults_of(version: str, method: str, answer: Answer) -> list[str]:
    if answer.error is not None:
        return [f"{version} {method}: {answer.error}"]
    if isinstance(answer.value, dict) and answer.value.get("data") == []:
        return [f"{version} {method}: shows nothing, so nothing of it was looked at"]
    return [fault for fault in (f"{version} {method}{place}" for place in answer.broken) if fault not in MISTYPED]


def test_a_broken_promise_is_noticed(lava: LavaDriver) -> None:
    """What the tests above would say of answers that lack something, or have it of another type."""
    customers = lava.call("11.2.0", "customers.list").value["data"]
    customer = next(one for one in customers if one["subscription"])

    def broken(method: str, **change: Any) -> list[str]:
        changed = {name: value for name, value in (customer | change).items() if value != "gone"}
        page = {"data": [changed], "has_more": False}
        return lava.broken("11.2.0", method, page if method == "customers.list" else changed)

    assert broken("customers.list") == broken("customers.retrieve") == []
    assert broken("customers.list", created_at="gone") == [".data[0].created_at: is not there"]
    assert broken("customers.retrieve", contact={**customer["contact"], "phone": 5}) == [
        ".contact.phone: 5 is not a string"
    ]
    assert broken("customers.retrieve", reference_id="gone") == [".reference_id: is not there"]
    assert broken("customers.retrieve", subscription="none") == [".subscription: is not an object"]
    resting = {**customer["subscription"], "status": "resting"}
    assert broken("customers.retrieve", subscription=resting) == ['.subscription.status: "resting" is not "cancelled"']
    assert lava.broken("11.2.0", "webhooks.delete", {"id": "x", "deleted": False}) == [".deleted: false is not true"]


@EACH
def test_ids_of_nobody_and_of_others(obol: Obol, lava: LavaDriver, demo: Demonstration, version: str) -> None:
    """404 either way, and nothing has happened to the other's."""
    known, shop = lava.methods(version), fresh_shop(demo, obol, version)
    other, faults = demo.other_merchant.secret_key, []
    for method in sorted(known & set(BY_ID)):
        arguments = BY_ID[method](shop)
        of_others = lava.call(version, method, *arguments, key=other)
        of_nobody = lava.call(version, method, "nobody", *arguments[1:])
        for status, error in (of_others.refusal(), of_nobody.refusal()):
            if status != 404 or not error["code"].endswith("not_found") or not error["message"]:
                faults.append(f"{version} {method}: {status} {error}")
    assert faults == []
    assert obol.customers.retrieve(shop.customer.customer_id).contact == shop.customer.contact
    assert obol.plans.retrieve(shop.plan.plan_id) == shop.plan


def test_the_test_of_ids_knows_all_methods(lava: LavaDriver) -> None:
    """Methods that are told no id make, list or report."""
    without = ("list", "create", "createPlan", "listPlans", "listConfigs", "usage.retrieve")
    for version in VERSIONS:
        assert {name for name in lava.methods(version) - OTHERS if not name.endswith(without)} <= set(BY_ID)


@EACH
def test_mistakes_are_told_by_their_field(lava: LavaDriver, version: str) -> None:
    known, faults = lava.methods(version), []
    for method, arguments, status, field in MISTAKES:
        if method in known:
            told_status, error = lava.call(version, method, *arguments).refusal()
            if told_status != status or error["param"] not in field.split("|"):
                faults.append(f"{version} {method}({str(arguments)[:80]}): {told_status} {error}")
    assert faults == []


@EACH
def test_what_is_deleted_is_gone(demo: Demonstration, obol: Obol, lava: LavaDriver, version: str) -> None:
    """A second deletion is 404, as of what never was; a second cancellation is as good as the first."""
    known, shop = lava.methods(version), fresh_shop(demo, obol, version)
    if "subscriptions.cancel" in known:
        for _ in range(2):
            assert lava.call(version, "subscriptions.cancel", shop.subscription_id).value["success"] is True
    shop.plan = obol.plans.create(name="Of nobody", period_amount=5)
    for method in known & DELETIONS:
        arguments = BY_ID[method](shop)
        assert lava.call(version, method, *arguments).error is None, method
        assert lava.call(version, method, *arguments).refusal()[0] == 404, method


@EACH
def test_pages_and_filters(demo: Demonstration, obol: Obol, lava: LavaDriver, version: str) -> None:
    """The loop of the published cookbook ends, and has seen each request once; all pairs of a filter must hold."""
    shop, mark = fresh_shop(demo, obol, version), secrets.token_hex(8)
    names = {f"{mark}-{number}" for number in range(5)}
    for name in names:
        metadata = {"mark": mark, "name": name}
        customer_id, meter_slug = shop.customer.customer_id, shop.meter.meter_slug
        obol.requests.create(request_id=name, customer_id=customer_id, meter_slug=meter_slug, metadata=metadata)
    seen, asked = [], {"limit": 2, "metadata_filters": {"mark": mark}}
    while True:
        page = lava.call(version, "requests.list", asked).value
        seen += [row["request_id"] for row in page["data"]]
        if not page.get("next_cursor"):
            break
        asked = {**asked, "cursor": page["next_cursor"]}
    assert (sorted(seen), page["has_more"]) == (sorted(names), False)
    for filters, found in (({"mark": mark, "name": seen[0]}, 1), ({"mark": mark, "name": "other"}, 0)):
        assert len(lava.call(version, "requests.list", {"metadata_filters": filters}).value["data"]) == found


@EACH
def test_a_key_of_nobody(lava: LavaDriver, version: str) -> None:
    status, error = lava.call(version, "requests.list", key="aks_test_of_nobody").refusal()
    assert (status, error["code"]) == (401, "unauthorized")


def fresh_shop(demo: Demonstration, obol: Obol, version: str) -> Shop:
    return Shop(obol, f"{version}-{secrets.token_hex(4)}", demo.hooks.url).with_keys(obol)
