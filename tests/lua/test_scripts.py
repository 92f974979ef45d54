"""Each documented return of each script, on a real server."""

from __future__ import annotations

import re
from pathlib import Path

import hiredis
import pytest

from gateway import share
from gateway.core.meter import from_definition
from gateway.ledger import scripts
from gateway.ledger.wallets import HoldLimits, Price, WalletRef, now_ms

GRADUATED = from_definition(
    "prd_g",
    1,
    {"tiers": [{"start": 0, "rate": "5"}, {"start": 1_000_000, "rate": "3"}, {"start": 10_000_000, "rate": "1"}]},
)
LATER = 10**15  # an expiry that is never reached


def later() -> int:
    return LATER


async def hold(ledger, amount, request_id="req_1", expires_ms=LATER, ref=None, **more):
    return await ledger.wallets.hold(
        ref or WalletRef("wal_1", 3, "mer_1"), request_id, amount, expires_ms=expires_ms, descriptor=b"{}", **more
    )


async def settle(ledger, ref, amount, request_id="req_1"):
    return await ledger.wallets.settle(ref, request_id, Price(flat_nano=amount), at_ms=5, body=b"{}")


async def test_open_creates_configures_and_does_not_create_unasked(ledger):
    ref = WalletRef("wal_1", 3, "mer_1")
    assert await ledger.wallets.open(ref, status="ok", limit_nano=0, create=False) == "unknown"
    assert await ledger.wallets.open(ref, status="ok", limit_nano=7, create=True) == "opened"
    assert await ledger.wallets.open(ref, status="disabled", limit_nano=9, create=True) == "configured"
    balance = await ledger.balance()
    assert (balance.status, balance.limit_nano, balance.total_nano) == ("disabled", 9, 0)


async def test_hold_reserves_and_is_idempotent(ledger):
    await ledger.opened(cycle=100)
    assert (await hold(ledger, 60)).kind == "held"
    assert (await hold(ledger, 60)).kind == "held"
    assert (await ledger.balance()).held_nano == 60


async def test_hold_tells_reserved_from_insufficient(ledger):
    await ledger.opened(cycle=100)
    await hold(ledger, 60, "req_a")
    refused = await hold(ledger, 41, "req_b")
    assert (refused.kind, refused.available_nano, refused.held_nano) == ("reserved", 40, 60)
    refused = await hold(ledger, 101, "req_b")
    assert (refused.kind, refused.available_nano, refused.held_nano) == ("insufficient", 40, 60)
    assert (await hold(ledger, 40, "req_b")).kind == "held"


async def test_hold_counts_the_calls_in_flight_and_every_ending_gives_one_back(ledger):
    ref = await ledger.opened(cycle=100)
    two = HoldLimits(calls=2)
    for request_id in ("req_a", "req_b"):
        assert (await hold(ledger, 10, request_id, expires_ms=5, limits=two)).kind == "held"
    refused = await hold(ledger, 10, "req_c", limits=two)
    assert (refused.kind, refused.calls) == ("busy", 2)
    assert (await hold(ledger, 10, "req_a", limits=two)).kind == "held"  # sent again, it is no further call
    assert (await ledger.balance()).calls == 2
    await settle(ledger, ref, 5, "req_a")
    await settle(ledger, ref, 5, "req_a")
    await ledger.wallets.expire(ref, "req_b", 6)
    await settle(ledger, ref, 5, "req_b")
    assert (await ledger.balance()).calls == 0
    await hold(ledger, 10, "req_c", limits=two)
    await ledger.wallets.release(ref, "req_c")
    await ledger.wallets.release(ref, "req_c")
    balance = await ledger.balance()
    assert (balance.calls, balance.held_nano) == (0, 0)
    assert (await hold(ledger, 101, "req_d", limits=HoldLimits(calls=1))).kind == "insufficient"


async def test_hold_takes_a_token_and_tells_when_there_is_one_again(ledger):
    await ledger.opened(cycle=100)
    limits = HoldLimits(requests_per_minute=60, requests_burst=2)
    kinds = [(await hold(ledger, 1, f"req_{n}", limits=limits, at_ms=1_000)).kind for n in range(3)]
    assert kinds == ["held", "held", "throttled"]
    assert (await hold(ledger, 1, "req_3", limits=limits, at_ms=1_400)).retry_ms == 600
    assert (await hold(ledger, 200, "req_4", limits=limits, at_ms=2_000)).kind == "insufficient"  # takes no token
    assert (await hold(ledger, 1, "req_5", limits=limits, at_ms=2_000)).kind == "held"
    assert (await hold(ledger, 1, "req_5", limits=limits, at_ms=2_000)).kind == "held"
    assert (await hold(ledger, 1, "req_6", limits=limits, at_ms=2_000)).retry_ms == 1_000
    seven = HoldLimits(requests_per_minute=7)  # 8571.43 ms each: never more than the rate
    assert (await hold(ledger, 1, "req_7", limits=seven, at_ms=100_000)).kind == "held"
    assert (await hold(ledger, 1, "req_8", limits=seven, at_ms=108_571)).retry_ms == 1
    assert (await hold(ledger, 1, "req_8", limits=seven, at_ms=108_572)).kind == "held"


async def test_a_clock_that_ran_ahead_does_not_lock_the_wallet(ledger):
    await ledger.opened(cycle=100)
    limits = HoldLimits(requests_per_minute=60, requests_burst=2)
    await hold(ledger, 1, "req_1", limits=limits, at_ms=10**12)
    assert (await hold(ledger, 1, "req_2", limits=limits, at_ms=1_000)).retry_ms == 1_000
    assert (await hold(ledger, 1, "req_3", limits=limits, at_ms=2_000)).kind == "held"


async def test_a_wallet_from_before_calls_were_counted_keeps_working(ledger):
    ref = await ledger.opened(cycle=100)
    for number in range(2):
        await hold(ledger, 10, f"old_{number}")
    await ledger.client.hdel(ledger.keys.wallet(ref.shard, ref.wallet_id), "calls")
    assert (await hold(ledger, 10, "new", limits=HoldLimits(calls=1, requests_per_minute=1))).kind == "held"
    for name in ("old_0", "new", "old_1"):
        await settle(ledger, ref, 1, name)
    balance = await ledger.balance()
    assert (balance.calls, balance.held_nano, balance.cycle_nano) == (0, 0, 97)


async def test_hold_counts_the_overage_allowed_and_knows_no_limit(ledger):
    await ledger.opened(limit=50)
    assert (await hold(ledger, 51)).kind == "insufficient"
    assert (await hold(ledger, 50)).kind == "held"
    free = WalletRef("wal_own", 4, "mer_1")
    await ledger.opened(limit=-1, ref=free)
    assert (await hold(ledger, 10**15, "req_2", ref=free)).kind == "held"


async def test_hold_of_a_disabled_and_of_an_unknown_wallet(ledger):
    assert (await hold(ledger, 1)).kind == "unknown"
    ref = await ledger.opened(cycle=100)
    await ledger.wallets.open(ref, status="disabled", limit_nano=0, create=False)
    refused = await hold(ledger, 1)
    assert (refused.kind, refused.status) == ("disabled", "disabled")


async def test_a_hold_that_ended_cannot_be_made_again(ledger):
    ref = await ledger.opened(cycle=100)
    await hold(ledger, 10)
    await settle(ledger, ref, 5)
    assert (await hold(ledger, 10)).kind == "ended"
    await ledger.wallets.release(ref, "req_2")
    assert (await hold(ledger, 10, "req_2")).kind == "ended"


async def test_settle_debits_in_order_of_pots_and_records_the_rest_as_overage(ledger):
    ref = await ledger.opened(cycle=10, limit=100)
    await ledger.wallets.credit(ref, "g2", "bundle", 20, at_ms=1)
    await ledger.wallets.credit(ref, "g3", "prepaid", 30, at_ms=1)
    await hold(ledger, 100)
    settled = await settle(ledger, ref, 75)
    assert (settled.kind, settled.amount_nano) == ("settled", 75)
    balance = await ledger.balance()
    assert (balance.cycle_nano, balance.bundle_nano, balance.prepaid_nano) == (0, 0, 0)
    assert (balance.overage_nano, balance.held_nano, balance.seq) == (15, 0, 4)
    entry = (await ledger.journal.read(3, 3, 10))[0]
    deltas = (entry.cycle_delta, entry.bundle_delta, entry.prepaid_delta, entry.overage_delta)
    assert (entry.kind, entry.reference, entry.seq, deltas) == ("call", "req_1", 4, (-10, -20, -30, 15))


async def test_settle_never_refuses_even_beyond_the_hold(ledger):
    ref = await ledger.opened(cycle=10)
    await hold(ledger, 10)
    assert (await settle(ledger, ref, 25)).amount_nano == 25
    balance = await ledger.balance()
    assert (balance.total_nano, balance.overage_nano, balance.available_nano) == (-15, 15, -15)


async def test_settle_again_is_a_duplicate_with_the_same_figures(ledger):
    ref = await ledger.opened(cycle=100)
    await hold(ledger, 10)
    first = await settle(ledger, ref, 5)
    again = await settle(ledger, ref, 9)
    assert again.kind == "duplicate"
    assert (again.amount_nano, again.journal_number) == (first.amount_nano, first.journal_number)
    assert (await ledger.balance()).cycle_nano == 95


async def test_settle_without_a_hold_is_gone_and_without_a_wallet_unknown(ledger):
    assert (await settle(ledger, WalletRef("wal_1", 3, "mer_1"), 5)).kind == "unknown"
    ref = await ledger.opened(cycle=100)
    assert (await settle(ledger, ref, 5)).kind == "gone"
    await hold(ledger, 10, "req_2")
    await ledger.wallets.release(ref, "req_2")
    assert (await settle(ledger, ref, 5, "req_2")).kind == "gone"
    assert (await ledger.balance()).cycle_nano == 100


async def test_settle_with_graduated_tiers_advances_the_position(ledger):
    ref = await ledger.opened(cycle=50 * 10**9)
    await hold(ledger, 1)
    first = await ledger.wallets.settle(ref, "req_1", Price.of(GRADUATED, 900_000, 0, 0), at_ms=5, body=b"{}")
    second = await ledger.wallets.report(ref, "rep_2", Price.of(GRADUATED, 4_100_000, 0, 0), at_ms=5, body=b"{}")
    assert (first.amount_nano, first.position) == (4_500_000_000, 0)
    assert (second.amount_nano, second.fee_nano, second.position) == (12_500_000_000, 12_500_000_000, 900_000)


async def test_report_needs_no_hold_and_is_idempotent(ledger):
    ref = await ledger.opened(cycle=100)
    assert (await ledger.wallets.report(ref, "rep:1", Price(flat_nano=30), at_ms=5, body=b"{}")).kind == "settled"
    assert (await ledger.wallets.report(ref, "rep:1", Price(flat_nano=30), at_ms=5, body=b"{}")).kind == "duplicate"
    assert (await ledger.balance()).cycle_nano == 70


async def test_release_gives_back_once(ledger):
    ref = await ledger.opened(cycle=100)
    await hold(ledger, 60)
    assert await ledger.wallets.release(ref, "req_1") == "released"
    assert await ledger.wallets.release(ref, "req_1") == "gone"
    balance = await ledger.balance()
    assert (balance.held_nano, balance.cycle_nano, balance.seq) == (0, 100, 1)


async def test_extend_renews_grows_refuses_and_misses(ledger):
    ref = await ledger.opened(cycle=100)
    wallets = ledger.wallets
    assert (await wallets.extend(ref, "req_1", 10, expires_ms=LATER, progress=None)).kind == "gone"
    await hold(ledger, 60)
    grown = await wallets.extend(ref, "req_1", 90, expires_ms=LATER, progress=None)
    assert (grown.kind, grown.amount_nano) == ("extended", 90)
    smaller = await wallets.extend(ref, "req_1", 10, expires_ms=LATER, progress=None)
    assert (smaller.kind, smaller.amount_nano) == ("extended", 90)
    refused = await wallets.extend(ref, "req_1", 101, expires_ms=LATER, progress=None)
    assert (refused.kind, refused.amount_nano) == ("refused", 90)
    assert (await ledger.balance()).held_nano == 90


async def test_expire_debits_the_progress_and_gives_back_the_rest(ledger):
    ref = await ledger.opened(cycle=100)
    soon = now_ms()
    await hold(ledger, 60, expires_ms=soon + 10_000)
    await ledger.wallets.extend(ref, "req_1", 60, expires_ms=soon, progress=(Price(flat_nano=25), b'{"so":"far"}'))
    assert await ledger.wallets.expire(ref, "req_1", soon - 1) == "alive"
    assert await ledger.wallets.expire(ref, "req_1", soon) == "expired"
    assert await ledger.wallets.expire(ref, "req_1", soon) == "gone"
    balance = await ledger.balance()
    assert (balance.held_nano, balance.cycle_nano) == (0, 75)
    entry = (await ledger.journal.read(3, 1, 10))[0]
    assert (entry.kind, entry.body, entry.cycle_delta) == ("expired", b'{"so":"far"}', -25)


async def test_a_settle_behind_an_expiry_debits_the_difference(ledger):
    ref = await ledger.opened(cycle=100)
    await hold(ledger, 60, expires_ms=1)
    await ledger.wallets.extend(ref, "req_1", 60, expires_ms=1, progress=(Price(flat_nano=25), b"{}"))
    await ledger.wallets.expire(ref, "req_1", 2)
    settled = await settle(ledger, ref, 40)
    assert (settled.kind, settled.amount_nano) == ("settled", 40)
    assert (await settle(ledger, ref, 40)).kind == "duplicate"
    assert (await ledger.balance()).cycle_nano == 60
    assert [entry.kind for entry in await ledger.journal.read(3, 0, 10)] == ["credit", "expired", "late"]


async def test_credit_fills_a_pot_once(ledger):
    ref = WalletRef("wal_1", 3, "mer_1")
    assert await ledger.wallets.credit(ref, "g1", "prepaid", 5, at_ms=1) == "unknown"
    await ledger.opened()
    assert await ledger.wallets.credit(ref, "g1", "prepaid", 5, at_ms=1) == "credited"
    assert await ledger.wallets.credit(ref, "g1", "prepaid", 5, at_ms=1) == "duplicate"
    assert (await ledger.balance()).prepaid_nano == 5


async def test_credit_pays_overage_first_and_keeps_the_rest(ledger):
    ref = await ledger.opened()
    await ledger.wallets.report(ref, "rep_1", Price(flat_nano=30), at_ms=1, body=b"{}")
    await ledger.wallets.credit(ref, "charge_1", "overage", 50, at_ms=1)
    balance = await ledger.balance()
    assert (balance.overage_nano, balance.prepaid_nano) == (0, 20)


async def test_credit_of_nothing_or_to_no_pot_is_an_error(ledger):
    ref = await ledger.opened()
    with pytest.raises(hiredis.ReplyError):
        await ledger.wallets.credit(ref, "g1", "prepaid", 0, at_ms=1)
    with pytest.raises(hiredis.ReplyError):
        await ledger.wallets.credit(ref, "g2", "teapot", 5, at_ms=1)
    assert (await ledger.balance()).seq == 0


async def test_claims(ledger):
    wallets = ledger.wallets
    assert (await wallets.claim(0, "mer_1", "n", "print", "req_1")).kind == "claimed"
    again = await wallets.claim(0, "mer_1", "n", "print", "req_2")
    assert (again.kind, again.holder, again.done) == ("same", "req_1", False)
    other = await wallets.claim(0, "mer_1", "n", "another", "req_3")
    assert (other.kind, other.holder) == ("conflict", "req_1")
    await wallets.unclaim(0, "mer_1", "n", "req_2", done=True)  # not the holder: nothing happens
    assert not (await wallets.claim(0, "mer_1", "n", "print", "req_2")).done
    await wallets.unclaim(0, "mer_1", "n", "req_1", done=True)
    assert (await wallets.claim(0, "mer_1", "n", "print", "req_2")).done
    await wallets.unclaim(0, "mer_1", "n", "req_1", done=False)
    assert (await wallets.claim(0, "mer_1", "n", "print", "req_2")).kind == "claimed"


async def test_amounts_beyond_two_to_the_53_are_refused_whole(ledger):
    ref = await ledger.opened(cycle=2**53 - 10)
    with pytest.raises(hiredis.ReplyError, match="2\\^53"):
        await ledger.wallets.credit(ref, "g9", "cycle", 20, at_ms=1)
    balance = await ledger.balance()
    assert (balance.cycle_nano, balance.seq) == (2**53 - 10, 1)


async def test_the_journal_is_dense_ordered_and_trimmed(ledger):
    ref = await ledger.opened()
    for number in range(10):
        await ledger.wallets.report(ref, f"rep_{number}", Price(flat_nano=1), at_ms=now_ms(), body=b"{}")
    entries = await ledger.journal.read(3, 0, 100)
    assert [entry.number for entry in entries] == list(range(1, 11))
    assert [entry.seq for entry in entries] == list(range(1, 11))
    assert await ledger.journal.last_number(3) == 10
    await ledger.journal.trim(3, 7)
    assert [entry.number for entry in await ledger.journal.read(3, 0, 100)] == [8, 9, 10]
    length, age_ms = await ledger.journal.length_and_age_ms(3, now_ms())
    assert length == 3
    assert 0 <= age_ms < 60_000


async def test_a_server_that_lost_its_scripts_gets_them_again(ledger):
    await ledger.opened(cycle=100)
    await ledger.client.script_flush("SYNC")
    assert (await hold(ledger, 60)).kind == "held"


@pytest.mark.parametrize("name", sorted(scripts.load()))
def test_every_script_documents_its_keys_arguments_and_returns(name):
    source = (share.directory("lua") / f"{name}.lua").read_text()
    header = re.match(r"(--.*\n)+", source)
    assert header
    for word in ("KEYS", "ARGV", "Returns"):
        assert f"-- {word}" in header[0], f"{name}.lua does not document its {word}"
    documented = set(re.findall(r"^--\s+(?:Returns)?\s*(?:\{'\w+'[^}]*\} \| )?\{'(\w+)'", header[0], re.MULTILINE))
    documented |= set(re.findall(r"\{'(\w+)'", header[0]))
    body = source[header.end() :]
    returned = set(re.findall(r"return \{ '(\w+)'", body)) | set(
        re.findall(r"and '(\w+)' or '(\w+)'", body)
        and [word for pair in re.findall(r"return \{ \w[^}]*?and '(\w+)' or '(\w+)'", body) for word in pair]
    )
    assert returned <= documented, f"{name}.lua returns {returned - documented} undocumented"


@pytest.mark.parametrize("path", sorted(share.directory("lua").rglob("*.lua")), ids=lambda path: Path(path).stem)
def test_scripts_take_time_and_randomness_as_arguments(path):
    source = path.read_text()
    assert "'TIME'" not in source
    assert "math.random" not in source


async def test_a_settle_beyond_two_to_the_53_changes_nothing(ledger):
    ref = await ledger.opened(cycle=100)
    await hold(ledger, 100)
    price = Price(flat_nano=2**53, meter=GRADUATED, units=5)
    with pytest.raises(hiredis.ReplyError, match="2\\^53"):
        await ledger.wallets.settle(ref, "req_1", price, at_ms=5, body=b"{}")
    balance = await ledger.balance()
    assert (balance.cycle_nano, balance.held_nano, balance.seq) == (100, 100, 1)
    assert await ledger.client.hgetall(ledger.keys.tiers(ref.shard, ref.wallet_id)) == {}
    assert len(await ledger.journal.read(3, 0, 10)) == 1
