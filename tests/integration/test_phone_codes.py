"""Codes that prove a phone number: the sandbox's, and Twilio's against a stand-in."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from aiohttp import web
from twilio_fake import ACCOUNT, SERVICE, TOKEN, TwilioFake

from gateway.errors import ObolError
from gateway.phones.choice import Phones, opened
from gateway.phones.contract import CHECKS_MAX
from gateway.phones.sandbox import Sandbox
from gateway.phones.twilio import Twilio
from gateway.settings import Settings
from gateway.store.postgres import Store

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHONE = "+15550100042"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(engines: tuple[str, str]) -> AsyncIterator[Store]:
    running = await Store.connect(engines[1])
    yield running
    await running.close()


@pytest_asyncio.fixture(loop_scope="module")
async def sandbox(store: Store) -> Sandbox:
    async with store.connection() as connection:
        await connection.execute("DELETE FROM sandbox_phone_codes")
    return Sandbox(store)


@pytest_asyncio.fixture(loop_scope="module")
async def fake() -> AsyncIterator[TwilioFake]:
    async with TwilioFake() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def twilio(fake: TwilioFake) -> AsyncIterator[Twilio]:
    sender = Twilio(ACCOUNT, TOKEN, SERVICE, timeout_ms=1_000, base_url=fake.url)
    yield sender
    await sender.close()


# The sandbox


async def shown(sandbox: Sandbox, caplog: pytest.LogCaptureFixture, phone: str = PHONE) -> str:
    """The code that the log shows after one was sent."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "gateway.phones"):
        await sandbox.send(phone, "checkout")
    assert phone not in caplog.text
    found = re.search(r"the code for \+15\*{7}42 is (\d{6})$", caplog.messages[-1])
    assert found is not None, caplog.messages
    return found[1]


async def test_the_code_is_shown_with_the_number_masked_and_is_right_once(sandbox, store, caplog):
    code = await shown(sandbox, caplog)
    assert await Sandbox(store).check(PHONE, f" {code} ") == "right"
    assert await sandbox.check(PHONE, code) == "expired"


async def test_zeros_are_right_only_where_a_code_was_sent(sandbox):
    assert await sandbox.check(PHONE, "000000") == "expired"
    await sandbox.send(PHONE, "checkout")
    assert await sandbox.check("+15550100043", "000000") == "expired"
    assert await sandbox.check(PHONE, "000000") == "right"


async def test_after_five_wrong_codes_even_the_right_one_is_not_taken(sandbox, caplog):
    code = await shown(sandbox, caplog)
    for wrong in ["", "1", "123x56", f"{(int(code) + 1) % 10**6:06}", "٠٠٠٠٠٠"][:CHECKS_MAX]:
        assert await sandbox.check(PHONE, wrong) == "wrong"
    assert await sandbox.check(PHONE, code) == "too_many"
    assert await sandbox.check(PHONE, "000000") == "too_many"
    await sandbox.send(PHONE, "again")
    assert await sandbox.check(PHONE, code) == "too_many", "sending again gives no new tries"


async def test_a_code_that_is_good_is_sent_again_and_one_that_is_old_is_not(sandbox, store, caplog):
    code = await shown(sandbox, caplog)
    assert await shown(sandbox, caplog) == code
    async with store.connection() as connection:
        await connection.execute("UPDATE sandbox_phone_codes SET expires_at = now() - interval '1 second', checks = 9")
    assert await sandbox.check(PHONE, code) == "expired"
    assert await sandbox.check(PHONE, await shown(sandbox, caplog)) == "right"


async def test_of_those_who_send_the_right_code_at_once_one_is_right(sandbox, caplog):
    code = await shown(sandbox, caplog)
    results = await asyncio.gather(*(sandbox.check(PHONE, code) for _ in range(5)))
    assert sorted(results) == ["expired"] * 4 + ["right"]


# Twilio


async def test_twilio_sends_a_code_and_checks_it(twilio: Twilio, fake: TwilioFake):
    await twilio.send(PHONE, "checkout")
    await twilio.send(PHONE, "again")
    ((phone, code), again) = fake.texts
    assert (phone, code) == again == (PHONE, "123456")
    assert await twilio.check(PHONE, "654321") == "wrong"
    assert await twilio.check(PHONE, "000000") == "wrong"
    assert await twilio.check(PHONE, f"{code} ") == "right"
    assert await twilio.check(PHONE, code) == "expired"


async def test_twilio_forgets_a_code_that_is_old(twilio: Twilio, fake: TwilioFake):
    await twilio.send(PHONE, "checkout")
    fake.expire(PHONE)
    assert await twilio.check(PHONE, "123456") == "expired"


async def test_what_cannot_be_a_code_is_wrong_and_not_sent_to_twilio(twilio: Twilio, fake: TwilioFake):
    await twilio.send(PHONE, "checkout")
    before = fake.requests
    for given in ("", "12345", "1234567", "12345x", "１２３４５６"):
        assert await twilio.check(PHONE, given) == "wrong"
    assert fake.requests == before


async def test_twilio_counts_checks_and_sends(twilio: Twilio, fake: TwilioFake):
    for _ in range(5):
        await twilio.send(PHONE, "checkout")
        assert await twilio.check(PHONE, "999999") == "wrong"
    assert await twilio.check(PHONE, "123456") == "too_many"
    with pytest.raises(ObolError, match="wait ten minutes") as caught:
        await twilio.send(PHONE, "checkout")
    assert caught.value.code == "too_many_requests"
    assert len(fake.texts) == 5


@pytest.mark.parametrize(
    ("phone", "words"),
    [("+15550100001", "landline"), ("+15550100002", "not the number of a phone"), ("+15550100003", "cannot be sent")],
)
async def test_a_number_that_gets_no_code_is_the_customers_to_correct(twilio: Twilio, phone: str, words: str):
    with pytest.raises(ObolError, match=words) as caught:
        await twilio.send(phone, "checkout")
    assert (caught.value.code, caught.value.param) == ("invalid_request", "phone")


@pytest.mark.parametrize(
    "broken",
    [
        lambda: web.Response(status=503),
        lambda: web.Response(status=500, text="<html>"),
        lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
        lambda: web.json_response({"code": 20003, "message": "Authenticate"}, status=401),
    ],
    ids=["away", "fault", "redirect", "key"],
)
async def test_twilio_out_of_order_is_told_as_that(
    twilio: Twilio, fake: TwilioFake, broken: Callable[[], web.Response]
):
    fake.broken = broken
    for call in (twilio.send(PHONE, "checkout"), twilio.check(PHONE, "123456")):
        with pytest.raises(ObolError) as caught:
            await call
        assert caught.value.code == "phone_codes_unavailable"
        assert caught.value.details["reason"].startswith("HTTP ")
        assert TOKEN not in f"{caught.value!r}{caught.value.__cause__!r}{caught.value.details}"


async def test_nobody_there_is_unavailable():
    sender = Twilio(ACCOUNT, TOKEN, SERVICE, timeout_ms=1_000, base_url="http://127.0.0.1:1")
    with pytest.raises(ObolError) as caught:
        await sender.send(PHONE, "checkout")
    assert caught.value.code == "phone_codes_unavailable"
    await sender.close()


# Who serves whom


async def test_each_mode_has_its_own_sender(store: Store):
    async with opened(Settings(), store) as phones:
        assert (phones.of("test").name, phones.of("test").mode) == ("sandbox", "test")
        with pytest.raises(ObolError, match="OBOL_TWILIO_ACCOUNT_SID") as caught:
            phones.of("live")
        assert caught.value.code == "phone_codes_not_configured"
    configured = Settings(twilio_account_sid=ACCOUNT, twilio_auth_token=TOKEN, twilio_verify_service_sid=SERVICE)
    async with opened(configured, store) as phones:
        assert [phones.of(mode).name for mode in ("test", "live")] == ["sandbox", "twilio"]
        with pytest.raises(ValueError, match="other mode"):
            Phones(phones.of("live"))
        with pytest.raises(ValueError, match="other mode"):
            Phones(phones.of("test"), phones.of("test"))
