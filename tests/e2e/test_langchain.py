"""langchain-openai: chat, streamed and not, and embeddings."""

from __future__ import annotations

import openai
import pytest
from addresses import OPENAI
from billed import STEERED, asked, billed, refused
from installation import Customer, Installation
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

BASES = {
    "query with a slash": lambda gateway: OPENAI.query(gateway) + "/",
    "query": OPENAI.query,
    "path": OPENAI.path,
    "drop-in": "{}/v1".format,
}


@pytest.fixture(params=BASES)
def base_url(request: pytest.FixtureRequest, fake: Installation) -> str:
    return BASES[request.param](fake.url)


def chat(base_url: str, key: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=base_url, api_key=key, model="gpt-4o-mini", max_retries=0)


def test_chat(fake, customer, base_url):
    answer = chat(base_url, customer.token).invoke(STEERED)
    assert len(answer.content.split()) == 40
    used = answer.usage_metadata
    assert billed(fake, customer, "openai", "gpt-4o-mini") == asked(used["input_tokens"], used["output_tokens"])


def test_chat_stream(fake, customer, base_url):
    pieces = list(chat(base_url, customer.token).stream(STEERED))
    assert len("".join(piece.content for piece in pieces).split()) == 40
    assert billed(fake, customer, "openai", "gpt-4o-mini", streamed=True) == asked()


def test_embeddings(fake: Installation, customer: Customer, base_url: str) -> None:
    """As texts: for the token numbers that it sends by default it fetches a table from the network."""
    model = "text-embedding-3-small"
    embeddings = OpenAIEmbeddings(
        base_url=base_url, api_key=customer.token, model=model, check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(["one two three", "four"])
    assert [len(vector) > 100 for vector in vectors] == [True, True]
    assert billed(fake, customer, "openai", "text-embedding-3-small") == {"input_tokens": 4}


def test_an_empty_balance_is_the_error_of_the_client_below(fake, base_url):
    poor = fake.customer(1)
    with pytest.raises(openai.APIStatusError) as error:
        chat(base_url, poor.token).invoke(STEERED)
    assert error.value.status_code == 402
    assert refused(fake, poor) in str(error.value)
