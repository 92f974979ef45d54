"""Vendors' packages at `/v1/rewrite/{format}/{url}`: their own dialect, and the URL of another vendor's model."""

from __future__ import annotations

import pytest
from billed import asked, billed
from installation import Customer, Installation
from test_other_models import CLIENTS, MODELS

URLS = {
    "openai": "https://api.openai.com/v1/chat/completions",
    "anthropic": "https://api.anthropic.com/v1/messages",
    "google": "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent",
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("client", "vendor"), [(one, of) for one in CLIENTS for of in MODELS if one != of])
def test_an_answer(fake: Installation, customer: Customer, client: str, vendor: str, stream: bool) -> None:
    base = f"{fake.url}/v1/rewrite/{client}/{URLS[vendor]}"
    text, input_tokens, output_tokens = CLIENTS[client](base, customer.token, MODELS[vendor], stream)
    assert len(text.split()) == 40
    assert billed(fake, customer, vendor, MODELS[vendor], streamed=stream) == asked(input_tokens, output_tokens)
