"""No merchant sees, changes or names what is another's, and neither side of an account what is the other side's.

All of it is read from the table of operations: a call that is new there is tried as it comes, or fails here until this
module knows how what it works on is made.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio
from api_fixtures import FIXED, Api, Reply
from shared_api import shared_api  # noqa: F401

from gateway.api import routes
from gateway.api.operation import Operation
from gateway.api.wallet_keys import make_wallet_key

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUERIES = {"/v1/usage": {"start": (datetime.now(UTC) - timedelta(days=2)).isoformat()}}
"""What a list must be asked with."""
OWN_NAMES = {("PUT", "/v1/provider_keys/{id}")}
"""Calls whose id is a name that every merchant may use: they make the caller's own."""
ALIKE = {"/v1/test_clock", "/v1/payment_methods"}
"""What begins alike for all."""
VOLATILE = re.compile(rb'"(as_of|last_used_at|now|end)":("[^"]*"|null)')
SAME_THING = (
    {"customer_id", "connection_id", "connection_secret", "reference_id", "wallet_id"},
    {"meter_id", "meter_slug", "meter_secret", "product_id", "product_secret"},
    {"meter_ids", "product_ids"},
    {"plan_id", "subscription_config_id"},
    {"auto_top_up_bundle_id"},
    {"default_auto_top_up_bundle_id"},
    {"credit_bundle_id"},
)
NEW_NAMES = {
    ("/v1/customers", "reference_id"),
    ("/v1/customers/{id}", "reference_id"),
    ("/v1/checkout_sessions", "reference_id"),
    ("/v1/meters", "meter_slug"),
}
"""Fields of bodies that name nothing of anybody's: they give a name."""


class Owned(NamedTuple):
    """What a merchant has: the ids of the paths' collections, and what fields may name."""

    key: str
    ids: dict[str, str]
    fields: dict[str, Any]

    def texts(self) -> list[bytes]:
        """What must be in no answer to anybody else."""
        values = [*self.ids.values(), *self.fields.values()]
        flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
        return [one.encode() for one in flat if one != "openai"]


class Scene(NamedTuple):
    api: Api
    owner: Owned
    stranger: Owned
    other_side: str
    """The secret key of the test side of the owner's account."""
    nobody: str
    """That of a merchant who has nothing."""
    table: list[Operation]


async def furnish(api: Api, merchant_id: str, key: str, name: str) -> Owned:
    """One of everything, made by calls of the API where there are any."""

    async def make(path: str, body: Any = None, method: str = "POST") -> dict[str, Any]:
        reply = await api.call(method, path, body, key=key)
        assert reply.status in (200, 201), (path, reply.body)
        made: dict[str, Any] = reply.body
        return made

    customer = await make("/v1/customers", {"reference_id": name})
    meter = await make("/v1/meters", {"name": name, "meter_slug": name, **FIXED})
    pack = {"name": name, "cost": "1", "credit_amount": "1"}
    plan = await make("/v1/plans", {"name": name, "period_amount": 0, "meter_ids": [name], "credit_bundles": [pack]})
    bundle_id = plan["credit_bundles"][0]["credit_bundle_id"]
    begun = await make("/v1/subscriptions", {"customer_id": name, "plan_id": plan["plan_id"]})
    session = {"checkout_mode": "subscription", "origin_url": "https://example.com", "plan_id": plan["plan_id"]}
    checkout = await make("/v1/checkout_sessions", session)
    await make(
        "/v1/requests", {"request_id": f"req-{name}", "customer_id": name, "meter_slug": name, "input_tokens": 9}
    )
    secret = await make("/v1/secret_keys", {"name": name})
    spend = await make("/v1/spend_keys", {"name": name, "customer_id": name})
    async with api.store.connection() as db:
        await make_wallet_key(db, merchant_id, customer["customer_id"], name)
    (wallet_key,) = (await api.call("GET", "/v1/wallet_keys", key=key)).body["data"]
    await make("/v1/provider_keys/openai", {"key": f"sk-{name}-0123456789"}, "PUT")
    webhook = await make("/v1/webhooks", {"name": name, "url": f"https://example.com/{name}"})
    customer_id = customer["customer_id"]
    ids = {
        "/v1/customers": customer_id,
        "/v1/flex/customers": customer_id,
        "/v1/meters": meter["meter_id"],
        "/v1/plans": plan["plan_id"],
        "/v1/subscription-configs": plan["plan_id"],
        "/v1/credit_bundles": bundle_id,
        "/v1/subscriptions": begun["subscription"]["subscription_id"],
        "/v1/checkout_sessions": checkout["checkout_session_id"],
        "/v1/requests": f"req-{name}",
        "/v1/secret_keys": secret["secret_key_id"],
        "/v1/spend_keys": spend["spend_key_id"],
        "/v1/wallet_keys": wallet_key["wallet_key_id"],
        "/v1/provider_keys": "openai",
        "/v1/webhooks": webhook["webhook_id"],
    }
    fields = {
        "customer_id": customer_id,
        "connection_id": customer_id,
        "connection_secret": customer["connection_secret"],
        "reference_id": name,
        "wallet_id": customer["wallet_id"],
        "meter_id": meter["meter_id"],
        "product_id": meter["meter_id"],
        "meter_slug": name,
        "meter_secret": meter["meter_secret"],
        "product_secret": meter["meter_secret"],
        "meter_ids": [meter["meter_id"]],
        "product_ids": [meter["meter_secret"]],
        "plan_id": plan["plan_id"],
        "subscription_config_id": plan["plan_id"],
        "credit_bundle_id": bundle_id,
        "auto_top_up_bundle_id": bundle_id,
        "default_auto_top_up_bundle_id": bundle_id,
    }
    return Owned(key, ids, fields)


def bodies(mine: Owned) -> dict[tuple[str, str], dict[str, Any]]:
    """Bodies that these calls take, which name what is the caller's own."""
    customer, meter, plan = ({name: mine.fields[name]} for name in ("customer_id", "meter_slug", "plan_id"))
    session = {"origin_url": "https://example.com", **customer}
    new_plan: dict[str, Any] = {"name": "x", "period_amount": "1"}
    return {
        ("POST", "/v1/checkout_sessions"): {**session, "checkout_mode": "subscription", **plan},
        ("POST", "/v1/flex/checkout_sessions"): {"origin_url": "https://example.com", **plan},
        ("POST", "/v1/plans"): new_plan,
        ("PATCH", "/v1/plans/{id}"): {},
        ("PUT", "/v1/subscription-configs/{id}"): {},
        ("POST", "/v1/subscriptions"): {**customer, **plan},
        ("PATCH", "/v1/subscriptions/{id}"): {},
        ("POST", "/v1/requests"): {"request_id": "x", **customer, **meter},
        ("POST", "/v1/spend_keys"): {"name": "x", **customer},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(api: Api) -> AsyncIterator[Scene]:
    own, other = api.merchant, await api.accounts.create_merchant("acc_2", "live", "Other")
    test_side = await api.accounts.create_merchant("acc_1", "test", "Shop")
    nobody = await api.accounts.create_merchant("acc_3", "live", "Nobody")
    owner = await furnish(api, own.merchant_id, own.secret_key, "the-owners-own")
    stranger = await furnish(api, other.merchant_id, other.secret_key, "the-strangers-own")
    await api.flush()
    table = [each for each in routes.operations(api.context) if not each.public]
    yield Scene(api, owner, stranger, test_side.secret_key, nobody.secret_key, table)


def filled(path: str, primary: str, of: Owned) -> str:
    """`path`, which is that of `primary` or an alias of it, with an id in it."""
    collection = primary.partition("/{")[0]
    assert collection in of.ids, f"tell furnish() how one of {collection} is made"
    return re.sub(r"{\w+}", "evt_1", path.replace("{id}", of.ids[collection]))


async def read_all(scene: Scene, key: str) -> dict[str, bytes]:
    """Whatever can be read with this key, of lists and of the owner's ids, without what moves by itself."""
    found: dict[str, bytes] = {}
    for each in scene.table:
        if each.method == "GET":
            path = filled(each.path, each.path, scene.owner) if "{" in each.path else each.path
            reply = await call(scene, each, path, key)
            found[each.path] = VOLATILE.sub(b"", msgspec.json.encode(reply.body))
    return found


async def call(scene: Scene, each: Operation, path: str, key: str, body: Any = None, **query: str) -> Reply:
    return await scene.api.call(each.method, path, body, key=key, **{**QUERIES.get(each.path, {}), **query})


async def test_the_ids_of_one_are_unknown_to_all_others(scene: Scene) -> None:
    before = await read_all(scene, scene.owner.key)
    tried = 0
    for each in (each for each in scene.table if "{" in each.path and (each.method, each.path) not in OWN_NAMES):
        for path in each.paths:
            for key in strangers(scene, each):
                reply = await call(scene, each, filled(path, each.path, scene.owner), key)
                assert reply.status == 404, (each.method, path, reply.body)
                tried += 1
    assert tried > 60
    assert await read_all(scene, scene.owner.key) == before


def strangers(scene: Scene, each: Operation) -> list[str]:
    """Keys of those who have not what is in the path. Some ids are names that all may use, such as a provider's."""
    collection = each.path.partition("/{")[0]
    shared = scene.owner.ids.get(collection) == scene.stranger.ids.get(collection)
    return [scene.other_side, scene.nobody, *([] if shared else [scene.stranger.key])]


async def test_ids_are_known_to_their_owner(scene: Scene) -> None:
    """Or the test above would hold for calls that know nothing at all."""
    for each in scene.table:
        if each.method == "GET" and each.path.count("{") == 1:
            for path in each.paths:
                reply = await call(scene, each, filled(path, each.path, scene.owner), scene.owner.key)
                assert reply.status == 200, (path, reply.body)


async def test_lists_show_what_is_the_callers(scene: Scene) -> None:
    own, theirs = await read_all(scene, scene.owner.key), await read_all(scene, scene.stranger.key)
    test_side = await read_all(scene, scene.other_side)
    for each in (each for each in scene.table if each.method == "GET"):
        for text in scene.owner.texts():
            assert text not in theirs[each.path], each.path
            assert text not in test_side[each.path], each.path
        same = own[each.path] == test_side[each.path]
        assert not same or each.path in ALIKE, f"{each.path} shows the owner nothing of its own"


def foreign_fields(struct: type[msgspec.Struct], owner: Owned) -> Mapping[str, Any]:
    names = {field.encode_name for field in msgspec.structs.fields(struct)}
    return {name: value for name, value in owner.fields.items() if name in names}


def without_same(body: dict[str, Any], name: str) -> dict[str, Any]:
    same = next(group for group in SAME_THING if name in group)
    return {key: value for key, value in body.items() if key not in same}


async def test_a_query_that_names_anothers_finds_nothing(scene: Scene) -> None:
    for each in scene.table:
        for name, value in foreign_fields(each.query, scene.owner).items():
            reply = await call(scene, each, each.path, scene.stranger.key, **{name: value})
            assert reply.status in (200, 404), (each.path, name, reply.body)
            text = msgspec.json.encode(reply.body)
            assert reply.status == 404 or reply.body["data"] == [], (each.path, name, text)


async def test_a_body_that_names_anothers_is_refused(scene: Scene) -> None:
    own_bodies, tried = bodies(scene.stranger), 0
    before = await read_all(scene, scene.owner.key)
    for each in scene.table:
        for name, value in foreign_fields(each.body, scene.owner).items():
            if (each.path, name) in NEW_NAMES:
                continue
            body = own_bodies.get((each.method, each.path))
            assert body is not None, f"tell bodies() what {each.method} {each.path} takes: it has {name}"
            body = {**without_same(body, name), name: value}
            if name == "credit_bundle_id" and "checkout_mode" in body:
                body["checkout_mode"] = "credit_bundle"
            path = filled(each.path, each.path, scene.stranger) if "{" in each.path else each.path
            reply = await call(scene, each, path, scene.stranger.key, body)
            assert reply.status == 404, (each.method, each.path, name, reply.body)
            tried += 1
    assert tried > 25
    assert await read_all(scene, scene.owner.key) == before
