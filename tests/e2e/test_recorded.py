"""What the openai, anthropic and groq packages make of recorded exchanges, through the gateway: answers, tool calls,
errors and the usage on the ledger."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import anthropic
import groq
import openai
import pytest
from addresses import ANTHROPIC, GROQ, OPENAI, Vendor
from installation import Installation
from recorded_exchanges import TOKEN_FIELDS, Recorded, exchanges

from gateway.local.fake.replay import EXCHANGE_HEADER

Client = openai.OpenAI | anthropic.Anthropic | groq.Groq
Json = dict[str, Any]


class Package(NamedTuple):
    """A vendor's package, and which call of it sends an endpoint's requests, with the parameters that it insists on."""

    vendor: Vendor
    drop_in: str
    """What follows the gateway's own address in the base URL."""
    client: Callable[..., Client]
    error: type[Exception]
    endpoints: dict[str, tuple[Callable[[Any], Callable[..., Any]], tuple[str, ...]]]


PACKAGES = {
    "openai": Package(
        OPENAI,
        "/v1",
        openai.OpenAI,
        openai.APIError,
        {
            "chat_completions": (lambda client: client.chat.completions.create, ("model", "messages", "stream")),
            "responses": (lambda client: client.responses.create, ("model", "input", "stream")),
            "completions": (lambda client: client.completions.create, ("model", "prompt", "stream")),
            "embeddings": (lambda client: client.embeddings.create, ("model", "input")),
            "moderations": (lambda client: client.moderations.create, ("model", "input")),
        },
    ),
    "anthropic": Package(
        ANTHROPIC,
        "",
        anthropic.Anthropic,
        anthropic.APIError,
        {
            "anthropic_messages": (
                lambda client: client.messages.create,
                ("model", "max_tokens", "messages", "stream"),
            ),
        },
    ),
    "groq": Package(
        GROQ,
        "",
        groq.Groq,
        groq.APIError,
        {"chat_completions": (lambda client: client.chat.completions.create, ("model", "messages", "stream"))},
    ),
}

LEAST = {
    ("openai", "chat_completions"): 45,
    ("openai", "responses"): 40,
    ("openai", "completions"): 8,
    ("openai", "embeddings"): 6,
    ("openai", "tool call"): 25,
    ("openai", "error"): 3,
    ("anthropic", "anthropic_messages"): 25,
    ("anthropic", "tool call"): 5,
    ("groq", "chat_completions"): 25,
    ("groq", "tool call"): 8,
}
"""How many there must have been, so that nothing passes for want of exchanges."""


def sendable(package: str) -> Iterator[tuple[Recorded, Json]]:
    """The exchanges of a package's vendor whose request is there, with its body."""
    for one in exchanges():
        of_vendor = one.record["provider"] == package and one.exchange.host in PACKAGES[package].vendor.base
        if of_vendor and one.record["endpoint"] in PACKAGES[package].endpoints and not one.body_lost:
            yield one, json.loads(one.sent_body)


def address(replay: Installation, package: Package, shape: str, body: Json) -> str:
    """The base URL. At the gateway's own, the model of the body says whose it is."""
    if shape == "drop-in" and "model" in body:
        body["model"] = f"{package.vendor.name}/{body['model']}"
        return replay.url + package.drop_in
    return package.vendor.path(replay.url) if shape == "path" else package.vendor.query(replay.url)


def ask(client: Client, package: Package, one: Recorded, body: Json) -> list[Any]:
    """The answer, or the events of a stream."""
    call, parameters = package.endpoints[one.record["endpoint"]]
    named = {name: body.pop(name) for name in parameters if name in body}
    answer = call(client)(**named, extra_body=body, extra_headers={EXCHANGE_HEADER: one.id})
    return list(answer) if named.get("stream") else [answer]


def tool_calls(events: list[Any]) -> bool:
    """Whether the client found any, in whatever shape the endpoint has."""
    found = json.dumps([event.model_dump(mode="json", warnings=False) for event in events])
    marks = ('"type": "tool_use"', '"type": "function_call"', '"tool_calls": [{')
    return any(mark in found for mark in marks)


def problem_of(row: Json, one: Recorded) -> str | None:
    expected = one.expected_tokens()
    found = {name: row["usage"][name] for name in TOKEN_FIELDS if name in row["usage"]}
    if row["estimated"] and not {"input_tokens", "output_tokens"} - expected.keys():
        return f"counted, although {expected} was reported"
    if any(found.get(name) != value for name, value in expected.items()):
        return f"{found} on the ledger, {expected} in the recording"
    return None


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")
def test_recorded_exchanges(replay: Installation, name: str) -> None:
    """Each at one base URL, in turn. A customer for each, so that its row can be told."""
    package = PACKAGES[name]
    shapes = itertools.cycle(("query", "path", "drop-in"))
    count: Counter[tuple[str, str]] = Counter()
    problems: dict[str, str] = {}
    for one, body in sendable(name):
        customer = replay.customer()
        base_url = address(replay, package, next(shapes), body)
        client = package.client(base_url=base_url, api_key=customer.token, max_retries=0, timeout=60)
        try:
            events = ask(client, package, one, body)
        except package.error as error:
            count[name, "error"] += 1
            if getattr(error, "status_code", one.exchange.status) != one.exchange.status:
                problems[one.id] = f"the package raises {error}"
            continue
        count[name, one.record["endpoint"]] += 1
        count[name, "tool call"] += tool_calls(events)
        if problem := problem_of(replay.row(customer), one):
            problems[one.id] = problem
    print(f"{name}: " + ", ".join(f"{kind} {number}" for (_, kind), number in count.items()))
    assert problems == {}
    assert {kind: least for kind, least in LEAST.items() if kind[0] == name and count[kind] < least} == {}
