"""The openai package: chat, responses, completions and embeddings, at each base URL, streamed and not."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from addresses import OPENAI
from billed import STEERED, asked, billed, refused
from installation import Customer, Installation

BASES = {
    "query": OPENAI.query,
    "query with a slash": lambda gateway: OPENAI.query(gateway) + "/",
    "path": OPENAI.path,
    "drop-in": "{}/v1".format,
}
MESSAGES: Any = [{"role": "user", "content": STEERED}]


@pytest.fixture(params=BASES)
def base_url(request: pytest.FixtureRequest, fake: Installation) -> str:
    return BASES[request.param](fake.url)


@pytest.fixture
def client(base_url: str, customer: Customer) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key=customer.token, max_retries=0)


def test_chat(fake, customer, client):
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert len(answer.choices[0].message.content.split()) == 40
    assert billed(fake, customer, "openai", "gpt-4o-mini") == asked(
        answer.usage.prompt_tokens, answer.usage.completion_tokens
    )


@pytest.mark.parametrize("include_usage", [False, True])
def test_chat_stream(fake, customer, client, include_usage):
    """The usage chunk reaches only the client that asked for it; both are charged by it."""
    options: Any = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True, **options))
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split()) == 40
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([340] if include_usage else [])
    assert billed(fake, customer, "openai", "gpt-4o-mini", streamed=True) == asked()


def test_responses(fake, customer, client):
    answer = client.responses.create(model="gpt-4o-mini", input=STEERED)
    assert len(answer.output_text.split()) == 40
    assert billed(fake, customer, "openai", "gpt-4o-mini") == asked(
        answer.usage.input_tokens, answer.usage.output_tokens
    )


def test_responses_stream(fake, customer, client):
    with client.responses.stream(model="gpt-4o-mini", input=STEERED) as stream:
        answer = stream.get_final_response()
    assert (len(answer.output_text.split()), answer.usage.total_tokens) == (40, 340)
    assert billed(fake, customer, "openai", "gpt-4o-mini", streamed=True) == asked()


def test_completions(fake, customer, client):
    answer = client.completions.create(model="gpt-3.5-turbo-instruct", prompt=STEERED, max_tokens=100)
    assert len(answer.choices[0].text.split()) == 40
    assert billed(fake, customer, "openai", "gpt-3.5-turbo-instruct") == asked()


def test_embeddings(fake, customer, client):
    """The package asks for base64 and decodes it."""
    answer = client.embeddings.create(model="text-embedding-3-small", input=["one two", "three"])
    assert [len(one.embedding) > 100 for one in answer.data] == [True, True]
    assert billed(fake, customer, "openai", "text-embedding-3-small") == {"input_tokens": answer.usage.prompt_tokens}


def test_embeddings_of_token_numbers(fake, customer, client):
    """langchain-openai asks so."""
    answer = client.embeddings.create(model="text-embedding-3-small", input=[[15339, 1917, 11], [4]])
    assert len(answer.data) == 2
    assert billed(fake, customer, "openai", "text-embedding-3-small") == {"input_tokens": answer.usage.prompt_tokens}


def test_sound_in(fake, customer, client):
    """A form with a file; the model stands in one of its parts."""
    sound = ("speech.wav", b"RIFF" + bytes(16_000 * 3))
    answer = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=sound, prompt=STEERED)
    assert len(answer.text.split()) == 40
    row = fake.row(customer)
    assert (row["provider"], row["model"], row["ending"]) == ("openai", "gpt-4o-transcribe", "completed")
    used = answer.usage
    assert (row["usage"]["input_tokens"], row["usage"]["output_tokens"]) == (used.input_tokens, used.output_tokens)
    assert row["usage"]["input_audio_tokens"] == used.input_token_details.audio_tokens > 0


def test_sound_out(fake, customer, client):
    """Its meter of tokens finds none in characters: they are on the row."""
    sound = client.audio.speech.create(model="tts-1", voice="alloy", input="one two three").read()
    assert len(sound) > 0
    row = fake.row(customer)
    assert (row["model"], row["usage"]["input_characters"]) == ("tts-1", len("one two three"))


def test_moderations_are_free(fake, customer, client):
    assert client.moderations.create(model="omni-moderation-latest", input="one two three").results
    assert [row["charge_nano"] for row in fake.rows(customer)] in ([], [0])


def test_the_models(client):
    """The provider's, or at the gateway's own base URL those that have a price."""
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]


def test_the_environment_alone(fake, customer, monkeypatch):
    """An app that names neither base URL nor key is moved without a change."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", customer.token)
    openai.OpenAI().chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert billed(fake, customer, "openai", "gpt-4o-mini") == asked()


def test_one_model_of_the_gateway(fake, customer):
    client = openai.OpenAI(base_url=f"{fake.url}/v1", api_key=customer.token, max_retries=0)
    assert client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_the_client_for_azure(fake, customer):
    """It puts the model into the path and its key into `api-key`."""
    client = openai.AzureOpenAI(
        azure_endpoint=fake.url, api_key=customer.token, api_version="2024-10-21", max_retries=0
    )
    assert client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES).usage.total_tokens == 340
    assert billed(fake, customer, "openai", "gpt-4o-mini") == asked()


def test_a_model_of_another_vendor(fake, customer):
    """At the gateway's own base URL `provider/model` says whose it is."""
    client = openai.OpenAI(base_url=f"{fake.url}/v1", api_key=customer.token, max_retries=0)
    answer = client.chat.completions.create(model="groq/llama-3.3-70b-versatile", messages=MESSAGES)
    assert answer.usage.total_tokens == 340
    assert billed(fake, customer, "groq", "llama-3.3-70b-versatile") == asked()


def test_a_model_that_nobody_has_is_the_packages_own_error(fake, customer):
    client = openai.OpenAI(base_url=f"{fake.url}/v1", api_key=customer.token, max_retries=0)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert error.value.code == "forward_model_not_supported"
    assert "no-such-model" in str(error.value)


def test_the_asynchronous_client(fake, customer, base_url):
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=customer.token, max_retries=0) as client:
            stream = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
            return [chunk async for chunk in stream]

    assert asyncio.run(ask())[-1].choices[0].finish_reason == "stop"
    assert billed(fake, customer, "openai", "gpt-4o-mini", streamed=True) == asked()


def test_an_empty_balance_is_the_packages_own_error(fake, base_url):
    poor = fake.customer(1)
    client = openai.OpenAI(base_url=base_url, api_key=poor.token, max_retries=0)
    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert (error.value.status_code, error.value.code) == (402, "insufficient_balance")
    assert refused(fake, poor) in str(error.value)


def test_a_wrong_key_is_the_packages_own_error(base_url):
    client = openai.OpenAI(base_url=base_url, api_key="rubbish", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as error:
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)
    assert error.value.code == "unauthorized"
