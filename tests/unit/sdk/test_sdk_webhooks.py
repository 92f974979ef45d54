"""The Python client verifies what the server signs, and nothing else."""

from __future__ import annotations

import pytest
from obol_sdk import webhooks

from gateway.wire import webhook_signature

SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"
OTHER = "whsec_" + "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0"
NOW = 1_790_000_000
BODY = (
    b'{"id":"evt_1","event":"connection.created","type":"connection.created","created_at":"2026-01-01T00:00:00.000Z",'
    b'"data":{"connection_id":"con_1"}}'
)


def signed(style: str, secrets: tuple[str, ...] = (SECRET,)) -> dict[str, str]:
    pairs = webhook_signature.headers("evt_1", BODY, secrets, timestamp_s=NOW, style=style)  # type: ignore[arg-type]
    return {name.decode(): value.decode() for name, value in pairs}


def only(headers: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() in names}


STYLES = [
    signed("default"),
    only(signed("default"), "x-webhook-signature"),
    only(signed("default"), "x-lava-signature"),
    only(signed("timestamped"), "x-lava-signature", "x-webhook-signature"),
    only(signed("default"), "webhook-id", "webhook-timestamp", "webhook-signature"),
]


def verify(headers: dict[str, str], body: bytes = BODY, secret: str = SECRET, now_s: int = NOW) -> webhooks.Event:
    timed = {"webhook-signature", "t="} & {*map(str.lower, headers), *(each[:2] for each in headers.values())}
    return webhooks.verify(body, headers, secret, now_s=now_s, untimed=not timed)


@pytest.mark.parametrize("headers", STYLES, ids=["all", "plain", "lava", "timestamped", "standard"])
def test_each_style_holds_and_a_change_does_not(headers: dict[str, str]) -> None:
    event = verify(headers)
    assert (event.id, event.event, event.data) == ("evt_1", "connection.created", {"connection_id": "con_1"})
    assert verify({name.upper(): value for name, value in headers.items()}) == event
    for change in ({"body": BODY + b" "}, {"secret": OTHER}):
        with pytest.raises(webhooks.VerificationError):
            verify(headers, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("headers", [STYLES[0], STYLES[3]], ids=["standard", "timestamped"])
def test_an_old_message_is_refused(headers: dict[str, str]) -> None:
    verify(headers, now_s=NOW + webhooks.TOLERANCE_S)
    for now_s in (NOW + webhooks.TOLERANCE_S + 1, NOW - webhooks.TOLERANCE_S - 1):
        with pytest.raises(webhooks.VerificationError, match="clock"):
            verify(headers, now_s=now_s)


def test_an_old_message_is_not_made_new_by_leaving_its_time_out() -> None:
    bare = only(signed("default"), "x-webhook-signature", "x-lava-signature")
    with pytest.raises(webhooks.VerificationError, match="untimed=True"):
        webhooks.verify(BODY, bare, SECRET, now_s=NOW + 10**6)
    assert webhooks.verify(BODY, bare, SECRET, untimed=True).id == "evt_1"


@pytest.mark.parametrize("style", ["default", "timestamped"])
def test_both_secrets_hold_while_one_is_rotated(style: str) -> None:
    headers = signed(style, (OTHER, SECRET))
    for secret in (SECRET, OTHER):
        verify(headers, secret=secret)
        verify({name: value for name, value in headers.items() if not name.startswith("webhook-")}, secret=secret)


@pytest.mark.parametrize("name", ["webhook-signature", "webhook-id", "x-lava-signature", "x-webhook-signature"])
def test_headers_that_are_no_text_are_refused(name: str) -> None:
    """As a server reads them that keeps bytes which are not UTF-8 as surrogates."""
    with pytest.raises(webhooks.VerificationError):
        verify({**signed("default"), name: "v1,\udcff"} if name.startswith("webhook") else {name: "\udcff"})


def test_a_wrong_signature_is_not_made_good_by_another_style() -> None:
    good = signed("default")
    with pytest.raises(webhooks.VerificationError):
        verify({**good, "webhook-signature": "v1,AAAA"})
    timed = only(signed("timestamped"), "x-lava-signature", "x-webhook-signature")
    with pytest.raises(webhooks.VerificationError):
        verify({**timed, "X-Lava-Signature": f"t={NOW},v1={'0' * 64}"})


def test_what_is_not_signed_or_odd_is_refused() -> None:
    for headers in (
        {},
        {"X-Webhook-Signature": ""},
        {"X-Webhook-Signature": "ä"},
        {"X-Lava-Signature": "t=,v1="},
        {**signed("default"), "webhook-timestamp": "soon"},
    ):
        with pytest.raises(webhooks.VerificationError):
            verify(headers)
    with pytest.raises(webhooks.VerificationError, match="base64"):
        verify(signed("default"), secret="not base64!")
