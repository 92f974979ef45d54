"""Each way of verifying that receivers were told to use accepts what is sent, and nothing else."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Callable

import pytest

from gateway.store.secrets import Derived
from gateway.wire.js_json import stringify
from gateway.wire.webhook_signature import headers

NOW_S = 1_790_000_000
EVENT_ID = "evt_1"
BODY = stringify({"id": EVENT_ID, "data": {"metadata": {"b": 1.50, "2": "é/"}}}).encode()
DERIVED = Derived("m" * 32)
SECRET, BEFORE, OTHER = (DERIVED.webhook_secret(*of) for of in (("wh_1", 2), ("wh_1", 1), ("wh_2", 1)))
Headers = dict[str, str]


def old_guide(body: bytes, given: Headers, secret: str) -> bool:
    """x-lava-signature: the hex HMAC of the raw body."""
    return hmac.compare_digest(given["x-lava-signature"], hmac.new(secret.encode(), body, "sha256").hexdigest())


def new_guide(body: bytes, given: Headers, secret: str) -> bool:
    """X-Webhook-Signature: the same."""
    return hmac.compare_digest(given["x-webhook-signature"], hmac.new(secret.encode(), body, "sha256").hexdigest())


def example_app(body: bytes, given: Headers, secret: str) -> bool:
    """One of the public examples signs JSON.stringify of the parsed body."""
    return new_guide(stringify(json.loads(body)).encode(), given, secret)


def flex(body: bytes, given: Headers, secret: str, now_s: int = NOW_S + 300) -> bool:
    """Webhooks.verify of the SDK 6.0.1: t and any v1 of X-Lava-Signature, within 300 s."""
    pairs = [part.strip().split("=") for part in given["x-lava-signature"].split(",")]
    times = [int(value) for key, value in pairs if key == "t"]
    signatures = [value for key, value in pairs if key == "v1"]
    if not times or not signatures or abs(now_s - times[-1]) > 300:
        return False
    expected = hmac.new(secret.encode(), f"{times[-1]}.{body.decode()}".encode(), hashlib.sha256).hexdigest()
    return any(hmac.compare_digest(each, expected) for each in signatures)


def standard(body: bytes, given: Headers, secret: str) -> bool:
    """Standard Webhooks: any v1 signature over id, time and body, under the bytes behind whsec_."""
    key = b64decode(secret.removeprefix("whsec_"), validate=True)
    text = f"{given['webhook-id']}.{int(given['webhook-timestamp'])}.{body.decode()}"
    expected = b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
    return f"v1,{expected}" in given["webhook-signature"].split(" ")


VERIFIERS = [(old_guide, "default"), (new_guide, "default"), (new_guide, "timestamped"), (example_app, "default")]
VERIFIERS += [(flex, "timestamped"), (standard, "default"), (standard, "timestamped")]


def signed(style: str, *secrets: str, body: bytes = BODY) -> Headers:
    pairs = headers(EVENT_ID, body, secrets, timestamp_s=NOW_S, style=style)
    return {name.decode().lower(): value.decode() for name, value in pairs}


@pytest.mark.parametrize(("verify", "style"), VERIFIERS)
def test_every_published_verifier_accepts_it(verify: Callable[..., bool], style: str) -> None:
    given = signed(style, SECRET)
    assert verify(BODY, given, SECRET)
    assert not verify(BODY, given, OTHER)
    assert not verify(BODY.replace(b"2", b"3"), given, SECRET)


def test_the_time_is_signed() -> None:
    given = signed("timestamped", SECRET)
    assert not flex(BODY, given, SECRET, now_s=NOW_S + 301)
    moved = given | {"x-lava-signature": given["x-lava-signature"].replace(str(NOW_S), str(NOW_S + 400))}
    assert not flex(BODY, moved, SECRET, now_s=NOW_S + 400)
    assert not standard(BODY, given | {"webhook-timestamp": str(NOW_S + 1)}, SECRET)
    assert not standard(BODY, given | {"webhook-id": "evt_2"}, SECRET)


def test_after_a_rotation_both_secrets_sign() -> None:
    given = signed("timestamped", SECRET, BEFORE)
    for secret in (SECRET, BEFORE):
        assert flex(BODY, given, secret)
        assert standard(BODY, given, secret)
    assert new_guide(BODY, given, SECRET)
    previous = given | {"x-webhook-signature": given["x-webhook-signature-previous"]}
    assert new_guide(BODY, previous, BEFORE)
    assert "x-webhook-signature-previous" not in signed("default", SECRET)


def test_a_secret_is_of_its_endpoint_and_number_and_of_32_bytes() -> None:
    assert len({SECRET, BEFORE, OTHER, Derived("n" * 32).webhook_secret("wh_1", 2)}) == 4
    assert DERIVED.webhook_secret("wh_1", 2) == SECRET
    assert len(b64decode(SECRET.removeprefix("whsec_"), validate=True)) == 32
