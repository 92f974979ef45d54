"""openai and @anthropic-ai/sdk for Node.js, and the Vercel AI SDK with four of its providers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from addresses import ANTHROPIC, GOOGLE, GROQ, OPENAI, Vendor
from billed import FEW_TOKENS, STEERED, TOO_LONG, asked, billed, billed_as_recorded, cut_short, refused
from installation import TOKEN_NANO, Customer, Installation

from gateway.local.fake.replay import EXCHANGE_HEADER

Ask = Callable[..., dict[str, Any]]


class Package(NamedTuple):
    vendor: Vendor
    drop_in: str
    model: str
    error: str
    """The class of its errors."""


PACKAGES = {
    "openai.chat": Package(OPENAI, "/v1", "gpt-4o-mini", "APIError"),
    "openai-6.chat": Package(OPENAI, "/v1", "gpt-4o-mini", "APIError"),
    "openai.responses": Package(OPENAI, "/v1", "gpt-4o-mini", "APIError"),
    "anthropic.messages": Package(ANTHROPIC, "", "claude-haiku-4-5", "PaymentRequiredError"),
    "ai.openai": Package(OPENAI, "/v1", "gpt-4o-mini", "AI_APICallError"),
    "ai.openai.chat": Package(OPENAI, "/v1", "gpt-4o-mini", "AI_APICallError"),
    "ai.openai-compatible": Package(
        Vendor("groq", f"{GROQ.base}/openai/v1"), "/v1", "groq/llama-3.3-70b-versatile", "AI_APICallError"
    ),
    "ai.anthropic": Package(Vendor("anthropic", f"{ANTHROPIC.base}/v1"), "/v1", "claude-haiku-4-5", "AI_APICallError"),
    "ai.google": Package(Vendor("google", f"{GOOGLE.base}/v1beta"), "/v1beta", "gemini-2.5-flash", "AI_APICallError"),
}
SHAPES = ("query", "path", "drop-in")
EACH = pytest.mark.parametrize("shape", SHAPES)
EACH_PACKAGE = pytest.mark.parametrize("package", PACKAGES)


def address(installation: Installation, package: str, shape: str) -> dict[str, str]:
    """Base URL and model to give to a package. Before a vendor's own URL no model needs to name its vendor."""
    of = PACKAGES[package]
    if shape == "drop-in":
        return {"baseURL": installation.url + of.drop_in, "model": of.model}
    base_url = getattr(of.vendor, shape)(installation.url)
    return {"baseURL": base_url, "model": of.model.removeprefix(f"{of.vendor.name}/")}


@pytest.fixture(scope="module")
def ask(node: tuple[str, Path]) -> Iterator[Ask]:
    """A call made by a Node.js process that lives as long as the tests: it takes a second to start."""
    program, packages = node
    with subprocess.Popen(
        [program, "driver.mjs"], cwd=packages, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield lambda **call: _answer(process, call)
        process.stdin.close()
        process.wait(10)


def _answer(process: subprocess.Popen[str], call: dict[str, Any]) -> dict[str, Any]:
    process.stdin.write(json.dumps(call) + "\n")
    line = process.stdout.readline()
    assert line, "the driver ended"
    return json.loads(line)


@EACH_PACKAGE
@EACH
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer(fake: Installation, customer: Customer, ask: Ask, package: str, shape: str, stream: bool) -> None:
    at = address(fake, package, shape)
    answer = ask(client=package, **at, key=customer.token, prompt=STEERED, stream=stream)
    assert "error" not in answer
    assert len(answer["text"].split()) == 40
    model = at["model"].rpartition("/")[2]
    tokens = billed(fake, customer, PACKAGES[package].vendor.name, model, streamed=stream)
    assert tokens == asked(answer["usage"]["input"], answer["usage"]["output"])


@pytest.mark.parametrize(
    ("package", "model"),
    [
        ("openai.embeddings", "text-embedding-3-small"),
        ("ai.openai", "text-embedding-3-small"),
        ("ai.google", "gemini-embedding-001"),
    ],
)
@EACH
def test_embeddings(fake: Installation, customer: Customer, ask: Ask, package: str, model: str, shape: str) -> None:
    at = address(fake, package.replace("embeddings", "chat"), shape) | {"model": model}
    answer = ask(client=package, **at, key=customer.token, prompt="one two", embeddings=True)
    assert "error" not in answer
    assert all(int(length) > 100 for length in answer["text"].split())
    assert fake.row(customer)["usage"]["input_tokens"] > 0
    assert fake.row(customer)["model"] == model


TOOL_CALLS = [
    ("openai.chat", "openai__chat_completions__sync__003"),
    ("openai.chat", "openai__chat_completions__stream__014"),
    ("openai.responses", "openai__responses__sync__021"),
    ("openai.responses", "openai__responses__stream__032"),
    ("anthropic.messages", "anthropic__anthropic_messages__stream__012"),
    ("ai.openai", "openai__responses__stream__032"),
    ("ai.openai.chat", "openai__chat_completions__sync__003"),
    ("ai.openai.chat", "openai__chat_completions__stream__014"),
    ("ai.anthropic", "anthropic__anthropic_messages__stream__012"),
    ("ai.google", "google__gemini_generate__sync__012"),
    ("ai.google", "google__gemini_stream__stream__053"),
]


@pytest.mark.parametrize(("package", "exchange"), TOOL_CALLS)
def test_a_tool_call(replay: Installation, recorded_customer: Customer, ask: Ask, package: str, exchange: str) -> None:
    at = address(replay, package, "query")
    answer = ask(
        client=package,
        **at,
        key=recorded_customer.token,
        prompt="Use the tool.",
        stream="__stream__" in exchange,
        tools=["weather"],
        headers={EXCHANGE_HEADER: exchange},
    )
    assert "error" not in answer
    assert answer["tools"]
    billed_as_recorded(replay, recorded_customer, exchange)


@EACH_PACKAGE
def test_a_stream_that_is_cut_short(fake: Installation, ask: Ask, package: str) -> None:
    """The errors of the AI SDK for this are the events themselves."""
    poor = fake.customer(FEW_TOKENS * TOKEN_NANO)
    answer = ask(client=package, **address(fake, package, "path"), key=poor.token, prompt=TOO_LONG, stream=True)
    assert cut_short(fake, poor) in answer["error"]["message"]


@EACH_PACKAGE
@EACH
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_empty_balance_is_the_packages_own_error(
    fake: Installation, ask: Ask, package: str, shape: str, stream: bool
) -> None:
    poor = fake.customer(1)
    answer = ask(client=package, **address(fake, package, shape), key=poor.token, prompt=STEERED, stream=stream)
    assert (answer["error"]["name"], answer["error"]["status"]) == (PACKAGES[package].error, 402)
    assert refused(fake, poor) in answer["error"]["message"]
