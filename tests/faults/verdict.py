"""What must hold once everything is at rest, whatever was killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from installation import Customer, Installation
from load import BROKEN, Load, Made

Span = tuple[float, float]
"""From when to when, in Unix time."""
NEVER = (0.0, 0.0)


@dataclass
class Verdict:
    """What was found, and what is wrong with it."""

    calls: int
    refused: int
    rows: int
    expired: int
    reports: int
    wrong: list[str]


async def judge(
    made: Installation,
    load: Load,
    prefix: str,
    *,
    forgotten: Callable[[Made], bool] = lambda _: False,
    unsettled: Span = NEVER,
) -> Verdict:
    """Compare what the callers were told, what the provider served and what is recorded.

    `forgotten`: of a call without a row, whether Redis had acknowledged it and forgot it with the promise to keep it.
    `unsettled`: when an answer may have been given by a gateway that died with Redis, and its settle with both.
    """
    rows, served = await made.rows(prefix), made.provider_calls()
    wrong: list[str] = []
    for call in load.calls:
        check = _report if call.kind == "report" else _call
        found = rows.get(call.key, [])
        if not found and forgotten(call):
            continue
        if [row["ending"] for row in found] == ["expired"] and ended_within(call, unsettled):
            continue
        wrong += [f"{call.key}: {what} {call} {found}" for what in check(call, served[call.key], found)]
    wrong += [f"{key}: a row of a call that nobody made" for key in rows.keys() - {call.key for call in load.calls}]
    for customer in load.customers:
        wrong += await _money(made, customer)
    code, words = await made.up.audit()
    if code:
        wrong.append(f"obol audit ends with {code}:\n{words}")
    calls = [call for call in load.calls if call.kind != "report"]
    flat = [row for found in rows.values() for row in found]
    return Verdict(
        calls=len(calls),
        refused=sum(not served[call.key] for call in calls),
        rows=len(flat),
        expired=sum(row["ending"] == "expired" for row in flat),
        reports=len(load.calls) - len(calls),
        wrong=wrong,
    )


def ended_within(call: Made, span: Span) -> bool:
    """Whether one of its attempts did."""
    return any(span[0] <= attempt.ended_at_s <= span[1] for attempt in call.attempts)


def _call(call: Made, served: int, rows: list[dict[str, Any]]) -> list[str]:
    wrong = []
    if served > 1:
        wrong.append(f"reached the provider {served} times")
    if served and len(rows) != 1:
        wrong.append(f"reached the provider and has {len(rows)} rows")
    if not served and any(row["ending"] != "expired" or row["charge_nano"] for row in rows):
        wrong.append("did not reach the provider and has a row")
    answered = call.answered
    if answered is not None:
        wrong += _answered(call, answered.request_id, rows)
    if len(call.attempts) == 1 and call.attempts[0].status not in (200, BROKEN) and rows:
        wrong.append("was refused and has a row")
    return wrong


def _answered(call: Made, request_id: str, rows: list[dict[str, Any]]) -> list[str]:
    """Who has got the whole answer is charged for exactly that."""
    row = next((row for row in rows if row["request_id"] == request_id), None)
    if row is None:
        return ["was answered and has no row with the request id that it was told"]
    tokens = (row["usage"].get("input_tokens"), row["usage"].get("output_tokens"))
    if row["ending"] != "completed" or row["estimated"] or tokens != (call.prompt_tokens, call.completion_tokens):
        return ["was answered and its row says something else"]
    return []


def _report(call: Made, served: int, rows: list[dict[str, Any]]) -> list[str]:
    if len(rows) != 1 or served:
        return [f"was reported and has {len(rows)} rows"]
    usage = rows[0]["usage"]
    if (usage.get("input_tokens"), usage.get("output_tokens")) != (call.prompt_tokens, call.completion_tokens):
        return ["was reported and its row says something else"]
    return []


async def _money(made: Installation, customer: Customer) -> list[str]:
    """The sum of the debits is the sum of the rows, in Redis, in the ledger and in the wallet's row."""
    wallet_id = customer.made.wallet.wallet_id
    (sums,) = await made.fetch(
        "SELECT (SELECT coalesce(sum(charge_nano), 0) FROM requests WHERE wallet_id = $1)::bigint AS charged, "
        "(SELECT cycle_nano + bundle_nano + prepaid_nano - overage_nano FROM wallets WHERE wallet_id = $1) AS stored, "
        "(SELECT count(*) - count(DISTINCT (kind, reference)) FROM ledger_entries WHERE wallet_id = $1) AS twice",
        wallet_id,
    )
    balance = await made.balance(customer)
    expected = customer.credit_nano - sums["charged"]
    wrong = []
    if not expected == sums["stored"] == balance.total_nano:
        wrong.append(f"{wallet_id}: {expected} by the rows, {sums['stored']} stored, {balance.total_nano} in Redis")
    if balance.overage_nano > customer.limit_nano:
        wrong.append(f"{wallet_id}: spent {balance.overage_nano} beyond its credit, allowed {customer.limit_nano}")
    if balance.held_nano or balance.calls:
        wrong.append(f"{wallet_id}: {balance.held_nano} are held by {balance.calls} calls, though none is under way")
    if sums["twice"]:
        wrong.append(f"{wallet_id}: {sums['twice']} entries of the ledger are there twice")
    return wrong
