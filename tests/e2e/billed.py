"""What the ledger must say after a client's call."""

from __future__ import annotations

from installation import TOKEN_NANO, Customer, Installation
from recorded_exchanges import exchanges

from gateway.testing import steering_text

PROMPT_TOKENS, COMPLETION_TOKENS = 300, 40
_TOKENS = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
STEERED = f"Say it in forty words. {steering_text(**_TOKENS)}"
"""A prompt to which the fake provider answers forty words, and reports these tokens."""
UNASKED = f"Say it in forty words. {steering_text(**_TOKENS, fault='usage_cumulative')}"
"""The same to a provider that tells the usage of a stream without being asked, in every chunk."""

TOO_LONG = f"Say much. {steering_text(prompt_tokens=50, completion_tokens=20_000, chunks=1_000, chunk_delay_ms=2)}"
"""A prompt whose answer FEW_TOKENS do not pay for; they pay for its beginning."""
FEW_TOKENS = 5_000


def asked(prompt: int = PROMPT_TOKENS, completion: int = COMPLETION_TOKENS) -> dict[str, int]:
    """The tokens that STEERED asks for, when the client was told the same."""
    assert (prompt, completion) == (PROMPT_TOKENS, COMPLETION_TOKENS)
    return {"input_tokens": prompt, "output_tokens": completion}


def billed(
    installation: Installation, customer: Customer, provider: str, model: str, *, streamed: bool = False
) -> dict[str, int]:
    """Input and output tokens of a customer's only call, which was completed, not estimated and charged by them."""
    row = installation.row(customer)
    told = (row["provider"], row["model"], row["ending"], row["streamed"], row["estimated"])
    assert told == (provider, model, "completed", streamed, False)
    assert customer.token not in repr(installation.seen()[-1])
    tokens = {name: row["usage"][name] for name in ("input_tokens", "output_tokens") if name in row["usage"]}
    assert row["charge_nano"] == sum(tokens.values()) * TOKEN_NANO > 0
    return tokens


def billed_as_recorded(replay: Installation, customer: Customer, exchange_id: str) -> None:
    """A customer's only call is on the ledger with the usage that the recording tells, and nothing was counted."""
    (recorded,) = (one for one in exchanges() if one.id == exchange_id)
    row = replay.row(customer)
    expected = recorded.expected_tokens()
    assert expected and {name: row["usage"].get(name) for name in expected} == expected
    assert (row["ending"], row["estimated"], row["streamed"]) == ("completed", False, recorded.exchange.stream)
    assert row["charge_nano"] == (expected["input_tokens"] + expected.get("output_tokens", 0)) * TOKEN_NANO


def cut_short(installation: Installation, customer: Customer) -> str:
    """What the gateway says in a stream that the balance does not cover to its end: a part came and was charged."""
    row = installation.row(customer, credit_nano=FEW_TOKENS * TOKEN_NANO)
    assert (row["ending"], row["streamed"]) == ("balance_exhausted", True)
    assert 0 < row["charge_nano"] <= FEW_TOKENS * TOKEN_NANO
    return "the balance is used up: this stream ends here"


def refused(installation: Installation, customer: Customer) -> str:
    """What the gateway says to a customer whose balance is too small: nothing was called and nothing recorded."""
    assert installation.rows(customer) == []
    return "the balance does not cover this call"
