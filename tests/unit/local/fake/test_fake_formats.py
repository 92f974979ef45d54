"""The official SDKs read what the fake provider answers, and Gemini gets its own shapes."""

from __future__ import annotations

import json

import anthropic
import openai
import pytest
from fake_calls import CHAT, GEMINI, chat, contents, events, post, user


async def test_openai_reads_a_chat_completion(openai_client):
    answer = await openai_client.chat.completions.create(**chat("What is a meter?"))
    text = answer.choices[0].message.content
    assert text.startswith('You asked: "What is a meter?" Every call')
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 4 + 4
    assert answer.usage.completion_tokens == len(text.split())


@pytest.mark.parametrize("include_usage", [True, False])
async def test_openai_reads_a_chat_stream(openai_client, include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    whole = await openai_client.chat.completions.create(**chat())
    stream = await openai_client.chat.completions.create(**chat(stream=True, **options))
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    used = [chunk.usage for chunk in chunks if chunk.usage]
    assert used == ([whole.usage] if include_usage else [])
    assert bool(chunks[-1].choices) is not include_usage


async def test_the_usage_field_is_null_on_other_chunks_only_when_asked_for(http, provider):
    _, asked = await post(http, provider, CHAT, chat(stream=True, stream_options={"include_usage": True}))
    _, unasked = await post(http, provider, CHAT, chat(stream=True))
    assert all(event["usage"] is None for event in events(asked)[:-1])
    assert not any("usage" in event for event in events(unasked))
    assert asked.endswith(b"data: [DONE]\n\n")


async def test_openai_reads_several_choices(openai_client):
    single = await openai_client.chat.completions.create(**chat())
    triple = await openai_client.chat.completions.create(**chat(n=3))
    assert [choice.index for choice in triple.choices] == [0, 1, 2]
    assert triple.usage.completion_tokens == 3 * single.usage.completion_tokens
    assert triple.usage.prompt_tokens == single.usage.prompt_tokens


async def test_openai_reads_responses(openai_client):
    whole = await openai_client.responses.create(model="gpt-5", input="Hi", instructions="Be brief")
    assert whole.status == "completed"
    assert whole.usage.input_tokens == 1 + 2 + 2 * 4
    stream = await openai_client.responses.create(model="gpt-5", input="Hi", instructions="Be brief", stream=True)
    seen = [event async for event in stream]
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == whole.output_text
    assert seen[-1].type == "response.completed"
    assert seen[-1].response.usage == whole.usage


async def test_openai_reads_an_incomplete_response(openai_client):
    cut = await openai_client.responses.create(model="gpt-5", input="Hi", max_output_tokens=3)
    assert cut.status == "incomplete"
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.usage.output_tokens == 3


async def test_openai_reads_legacy_completions(openai_client):
    whole = await openai_client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Say hi", max_tokens=5)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 5)
    assert whole.choices[0].finish_reason == "length"
    stream = await openai_client.completions.create(
        model="gpt-3.5-turbo-instruct",
        prompt="Say hi",
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_openai_reads_embeddings(openai_client, encoding):
    request = {"model": "text-embedding-3-small", "input": ["one two", "three"], "dimensions": 8}
    found = await openai_client.embeddings.create(**request, encoding_format=encoding)
    default = await openai_client.embeddings.create(**request)
    assert found.usage.prompt_tokens == 3
    if encoding == "float":
        assert [item.embedding for item in found.data] == [item.embedding for item in default.data]
        assert [len(item.embedding) for item in default.data] == [8, 8]
    else:
        assert isinstance(found.data[0].embedding, str)


async def test_openai_reads_the_other_families(openai_client):
    text = await openai_client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", b"\0" * 40_000))
    assert text.usage.input_token_details.audio_tokens == 30
    seconds = await openai_client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"\r\n--" * 4_001))
    assert seconds.model_dump()["usage"] == {"type": "duration", "seconds": 2}
    speech = await openai_client.audio.speech.create(model="tts-1", voice="alloy", input="Hello")
    assert len(await speech.aread()) == 500
    images = await openai_client.images.generate(model="gpt-image-1", prompt="a cat", n=2)
    assert (len(images.data), images.usage.output_tokens) == (2, 2 * 1_056)
    edited = await openai_client.images.edit(model="gpt-image-1", image=("a.png", b"\x89PNG"), prompt="a cat", n=2)
    assert len(edited.data) == 2
    moderation = await openai_client.moderations.create(input="This is safe")
    assert moderation.results[0].flagged is False
    uploaded = await openai_client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    assert (uploaded.bytes, uploaded.filename) == (3, "a.jsonl")
    assert [file async for file in openai_client.files.list()] == []
    assert "gpt-4o-mini" in [model.id async for model in openai_client.models.list()]


async def test_openai_reads_a_transcription_stream(openai_client):
    request = {"model": "gpt-4o-transcribe", "file": ("a.wav", b"\0" * 16_000), "prompt": "names"}
    stream = await openai_client.audio.transcriptions.create(**request, stream=True)
    seen = [event async for event in stream]
    assert seen[-1].type == "transcript.text.done"
    assert seen[-1].text == "".join(event.delta for event in seen[:-1])
    assert seen[-1].usage.input_tokens == 1 + 10


async def test_anthropic_reads_a_message(anthropic_client):
    answer = await anthropic_client.messages.create(
        model="claude-test", max_tokens=500, system="Be brief", messages=user("What is a meter?")
    )
    assert answer.stop_reason == "end_turn"
    assert answer.usage.input_tokens == 4 + 2 + 2 * 4
    assert answer.usage.output_tokens == len(answer.content[0].text.split())


async def test_anthropic_reads_a_stream(anthropic_client):
    request = {
        "model": "claude-test",
        "max_tokens": 500,
        "messages": user("Hi [[fake prompt_tokens=100 cached_tokens=60 cache_write_tokens=30]]"),
    }
    async with anthropic_client.messages.stream(**request) as stream:
        names = [event.type async for event in stream]
        final = await stream.get_final_message()
    whole = await anthropic_client.messages.create(**request)
    assert names[0] == "message_start"
    assert names[-1] == "message_stop"
    assert final.content[0].text == whole.content[0].text
    used = final.usage
    assert (used.input_tokens, used.cache_read_input_tokens, used.cache_creation_input_tokens) == (10, 60, 30)
    assert used.output_tokens == whole.usage.output_tokens


async def test_anthropic_counts_tokens(anthropic_client):
    counted = await anthropic_client.messages.count_tokens(model="claude-test", messages=user("one two three"))
    assert counted.input_tokens == 3 + 4


async def test_the_sdks_raise_their_own_errors(openai_client, anthropic_client):
    with pytest.raises(openai.RateLimitError) as limited:
        await openai_client.chat.completions.create(**chat("[[fake fault=status:429]]"))
    assert limited.value.response.headers["retry-after"] == "1"
    with pytest.raises(openai.InternalServerError):
        await openai_client.chat.completions.create(**chat("[[fake fault=status:500]]"))
    with pytest.raises(openai.APIError, match="had an error"):
        stream = await openai_client.chat.completions.create(**chat("[[fake fault=error_event]]", stream=True))
        _ = [chunk async for chunk in stream]
    message = {"model": "claude-test", "max_tokens": 9, "messages": user("[[fake fault=status:529]]")}
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        await anthropic_client.messages.create(**message)
    assert overloaded.value.body["error"]["type"] == "overloaded_error"
    message["messages"] = user("[[fake fault=error_event]]")
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        _ = [event async for event in await anthropic_client.messages.create(**message, stream=True)]


async def test_gemini_answers_in_its_three_ways(http, provider):
    request = contents("Hi [[fake reasoning_tokens=7 chunks=4 completion_tokens=19 cached_tokens=2]]")
    _, whole = await post(http, provider, f"{GEMINI}:generateContent", request)
    _, lines = await post(http, provider, f"{GEMINI}:streamGenerateContent?alt=sse", request)
    _, array = await post(http, provider, f"{GEMINI}:streamGenerateContent", request)
    assert lines.count(b"\r\n\r\n") == lines.count(b"\n\r\n") == len(events(lines)) == 5
    usage = {
        "promptTokenCount": 5,
        "candidatesTokenCount": 12,
        "totalTokenCount": 24,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 5}],
        "cachedContentTokenCount": 2,
        "thoughtsTokenCount": 7,
    }
    text = json.loads(whole)["candidates"][0]["content"]["parts"][0]["text"]
    for chunks in (events(lines), json.loads(array)):
        assert chunks[-1]["usageMetadata"] == json.loads(whole)["usageMetadata"] == usage
        assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
        assert "".join(chunk["candidates"][0]["content"]["parts"][0]["text"] for chunk in chunks) == text


async def test_a_failing_gemini_array_is_still_json(http, provider):
    for words in (1, 2, 9):
        request = contents(f"Hi [[fake fault=error_event chunks={words}]]")
        _, array = await post(http, provider, f"{GEMINI}:streamGenerateContent", request)
        assert json.loads(array)[-1]["error"]["status"] == "UNAVAILABLE"


async def test_gemini_embeds(http, provider):
    content = {"content": {"parts": [{"text": "one two"}]}, "outputDimensionality": 4}
    path = "/v1beta/models/gemini-embedding-2"
    _, single = await post(http, provider, f"{path}:embedContent", content)
    _, batch = await post(http, provider, f"{path}:batchEmbedContents", {"requests": [content, content]})
    assert json.loads(single)["usageMetadata"]["promptTokenCount"] == 2
    assert json.loads(batch)["embeddings"] == [json.loads(single)["embedding"]] * 2
    _, older = await post(http, provider, "/v1beta/models/gemini-embedding-001:embedContent", content)
    assert "usageMetadata" not in json.loads(older)
    _, counted = await post(http, provider, f"{GEMINI}:countTokens", contents("one two"))
    assert json.loads(counted)["totalTokens"] == 6


@pytest.mark.parametrize("fault", ["", "usage_twice", "no_usage"])
async def test_cohere_answers_whole_and_in_a_stream(http, provider, fault):
    steering = {"x-fake-provider": json.dumps({"prompt_tokens": 50, "completion_tokens": 7, "fault": fault})}
    status, whole = await post(http, provider, "/v2/chat", chat(), **steering)
    answer = json.loads(whole)
    assert (status, len(answer["message"]["content"][0]["text"].split())) == (200, 7)
    _, body = await post(http, provider, "/v2/chat", chat(stream=True), **steering)
    seen = events(body)
    text = "".join(one["delta"]["message"]["content"]["text"] for one in seen if one["type"] == "content-delta")
    assert text == answer["message"]["content"][0]["text"]
    endings = [one["delta"] for one in seen if one["type"] == "message-end"]
    assert len(endings) == (2 if fault == "usage_twice" else 1)
    told = None if fault == "no_usage" else {"input_tokens": 50, "output_tokens": 7}
    for one in (answer, *endings):
        assert one.get("usage", {}).get("billed_units") == told


async def test_cohere_refuses_in_its_own_shape(http, provider):
    status, body = await post(http, provider, "/v2/chat", {"model": "command-a-03-2025", "messages": []})
    assert status == 400
    assert json.loads(body).keys() == {"id", "message"}


async def test_each_dialect_refuses_in_its_own_shape(http, provider):
    cases = (
        (CHAT, {"model": "m"}, "messages"),
        (CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
        ("/v1/messages", chat(), "max_tokens"),
        (f"{GEMINI}:generateContent", {}, "contents"),
        ("/v1/embeddings", {"model": "m", "input": 5}, "input"),
    )
    for path, body, field in cases:
        status, answer = await post(http, provider, path, body)
        assert status == 400
        assert field in json.loads(answer)["error"]["message"]
    status, answer = await post(http, provider, "/v1/nothing", {})
    assert (status, json.loads(answer)["error"]["type"]) == (404, "invalid_request_error")
