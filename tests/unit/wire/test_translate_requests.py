"""What each dialect's request becomes in the others, and what is refused by the name of its field."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gateway.errors import ObolError
from gateway.wire.translate.gemini.request_writer import NO_SIGNATURE
from gateway.wire.translate.translation import path_of, read_request, write_request
from gateway.wire.translate.values import To

PIXEL = "iVBORw0KGgo="
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OPENAI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
ANTHROPIC: dict[str, Any] = OPENAI | {"max_tokens": 100}
GOOGLE: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
BODIES = {"openai": OPENAI, "anthropic": ANTHROPIC, "google": GOOGLE}


def translate(client: str, dialect: str, body: dict[str, Any], *, model: str = "m", **to: Any) -> dict[str, Any]:
    given = model if client == "google" or model != "m" else None
    ask = read_request(json.dumps(body).encode(), client, model=given)
    return json.loads(write_request(ask, dialect, To(**to)))


def tool(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": WEATHER, **more}}


def part(value: dict[str, Any]) -> dict[str, Any]:
    return OPENAI | {"messages": [{"role": "user", "content": [value]}]}


CALLING = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Rome and Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
            {"id": "b", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "20 C"},
    {"role": "tool", "tool_call_id": "b", "content": "5 C"},
    {"role": "user", "content": "And now?"},
]


def test_a_loop_of_tools_goes_to_anthropic_in_one_turn():
    body = translate("openai", "anthropic", OPENAI | {"messages": CALLING, "tools": [tool()]})
    assert body["system"] == "Be brief."
    assert body["messages"][1]["content"] == [
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "b", "name": "weather", "input": {"city": "Oslo"}},
    ]
    results = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "20 C"}]}
    results["content"].append({"type": "tool_result", "tool_use_id": "b", "content": "5 C"})
    results["content"].append({"type": "text", "text": "And now?"})
    assert body["messages"][2:] == [results]
    assert body["tools"] == [{"name": "weather", "description": "d", "input_schema": WEATHER}]
    assert body["max_tokens"] == 4096


def test_a_loop_of_tools_goes_to_gemini_by_the_names_of_the_calls():
    body = translate("openai", "google", OPENAI | {"messages": CALLING, "tools": [tool()]}, model="gemini-3-pro")
    first, second = body["contents"][1]["parts"]
    assert first["functionCall"] == {"id": "a", "name": "weather", "args": {"city": "Rome"}}
    assert (first["thoughtSignature"], "thoughtSignature" in second) == (NO_SIGNATURE, False)
    response = {"id": "b", "name": "weather", "response": {"result": "5 C"}}
    assert body["contents"][2]["parts"][1]["functionResponse"] == response
    assert body["tools"] == [
        {"functionDeclarations": [{"name": "weather", "description": "d", "parametersJsonSchema": WEATHER}]}
    ]


def test_geminis_proof_comes_back_where_google_has_it_in_its_openai_dialect():
    messages = json.loads(json.dumps(CALLING))
    messages[2]["tool_calls"][0]["extra_content"] = {"google": {"thought_signature": "proof"}}
    body = translate("openai", "google", OPENAI | {"messages": messages}, model="gemini-3-pro")
    assert body["contents"][1]["parts"][0]["thoughtSignature"] == "proof"


def test_calls_without_ids_are_matched_by_name_in_their_order():
    calls = [{"functionCall": {"name": "f", "args": {"x": number}}} for number in (1, 2)]
    results = [{"function_response": {"name": "f", "response": {"output": text}}} for text in ("one", "two")]
    contents = [*GOOGLE["contents"], {"role": "model", "parts": calls}, {"role": "user", "parts": results}]
    body = translate("google", "openai", {"contents": contents})
    ids = [call["id"] for call in body["messages"][1]["tool_calls"]]
    assert [message["tool_call_id"] for message in body["messages"][2:]] == ids and len(set(ids)) == 2
    assert [message["content"] for message in body["messages"][2:]] == ["one", "two"]


def test_results_come_first_where_anthropic_demands_it():
    result = {"functionResponse": {"name": "f", "response": {"result": "one"}}}
    contents = [{"role": "model", "parts": [{"functionCall": {"name": "f"}}]}, {"parts": [{"text": "Here"}, result]}]
    body = translate("google", "anthropic", {"contents": contents})
    assert [block["type"] for block in body["messages"][1]["content"]] == ["tool_result", "text"]
    assert body["messages"][1]["content"][0]["tool_use_id"] == body["messages"][0]["content"][0]["id"]


@pytest.mark.parametrize(
    ("choice", "anthropic", "google"),
    [
        ("auto", {"type": "auto"}, {"mode": "AUTO"}),
        ("none", {"type": "none"}, {"mode": "NONE"}),
        ("required", {"type": "any"}, {"mode": "ANY"}),
        (
            {"type": "function", "function": {"name": "weather"}},
            {"type": "tool", "name": "weather"},
            {"mode": "ANY", "allowedFunctionNames": ["weather"]},
        ),
    ],
)
def test_the_choice_of_a_tool(choice: Any, anthropic: Any, google: Any):
    body = OPENAI | {"tools": [tool()], "tool_choice": choice}
    there = translate("openai", "anthropic", body)
    assert there["tool_choice"] == anthropic
    assert translate("openai", "google", body)["toolConfig"] == {"functionCallingConfig": google}
    assert translate("anthropic", "openai", there)["tool_choice"] == choice


def test_one_tool_at_a_time():
    body = OPENAI | {"tools": [tool()], "parallel_tool_calls": False}
    there = translate("openai", "anthropic", body)
    assert there["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert translate("anthropic", "openai", there)["parallel_tool_calls"] is False


def test_images_and_documents():
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}}
    there = translate("openai", "anthropic", part(image))["messages"][0]["content"][0]
    assert there == {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    parts = translate("openai", "google", part(image))["contents"][0]["parts"]
    assert parts == [{"inlineData": {"mimeType": "image/png", "data": PIXEL}}]
    url = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    there = translate("openai", "anthropic", part(url))["messages"][0]["content"][0]
    assert there == {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PIXEL}"}}
    there = translate("openai", "anthropic", part(pdf))
    assert there["messages"][0]["content"][0]["type"] == "document"
    assert translate("anthropic", "openai", there)["messages"][0]["content"] == [pdf]


def test_base64_in_googles_alphabet_becomes_the_usual_one():
    body = {"contents": [{"parts": [{"inline_data": {"mime_type": "image/png", "data": "_-8"}}]}]}
    (block,) = translate("google", "anthropic", body)["messages"][0]["content"]
    assert block["source"]["data"] == "/+8="


def test_limits_and_sampling():
    asked = OPENAI | {"max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": "END", "user": "u"}
    there = translate("openai", "anthropic", asked)
    assert (there["max_tokens"], there["stop_sequences"], there["metadata"]) == (7, ["END"], {"user_id": "u"})
    config = translate("openai", "google", asked | {"seed": 3, "n": 2, "presence_penalty": 1})["generationConfig"]
    assert config == {
        "maxOutputTokens": 7,
        "temperature": 0.5,
        "topP": 0.9,
        "stopSequences": ["END"],
        "seed": 3,
        "presencePenalty": 1,
        "candidateCount": 2,
    }


@pytest.mark.parametrize(("provider", "name"), [("openai", "max_completion_tokens"), ("mistral", "max_tokens")])
def test_the_limit_has_the_name_that_the_provider_knows(provider: str, name: str):
    assert translate("anthropic", "openai", ANTHROPIC, provider=provider)[name] == 100


def test_usage_of_a_stream_is_asked_for_where_the_provider_wants_to_be_asked():
    asked = ANTHROPIC | {"stream": True}
    assert translate("anthropic", "openai", asked, asks_usage=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in translate("anthropic", "openai", asked)


def test_output_by_a_schema():
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER, "strict": True}}
    there = translate("openai", "anthropic", OPENAI | {"response_format": form})
    assert there["output_config"] == {"format": {"type": "json_schema", "schema": WEATHER}}
    assert translate("anthropic", "openai", there)["response_format"]["json_schema"]["schema"] == WEATHER
    config = translate("openai", "google", OPENAI | {"response_format": form})["generationConfig"]
    assert config == {"responseMimeType": "application/json", "responseJsonSchema": WEATHER}
    free = translate("openai", "google", OPENAI | {"response_format": {"type": "json_object"}})["generationConfig"]
    assert free == {"responseMimeType": "application/json"}


def test_geminis_schemas_become_json_schema():
    given = {
        "type": "OBJECT",
        "properties": {"a": {"type": "STRING", "nullable": True}, "b": {"type": "ARRAY", "items": {"type": "INTEGER"}}},
        "propertyOrdering": ["a"],
    }
    body = GOOGLE | {"tools": [{"functionDeclarations": [{"name": "f", "parameters": given}]}]}
    assert translate("google", "openai", body)["tools"][0]["function"]["parameters"] == {
        "type": "object",
        "properties": {"a": {"type": ["string", "null"]}, "b": {"type": "array", "items": {"type": "integer"}}},
    }


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("claude-sonnet-4-5", "medium", {"type": "enabled", "budget_tokens": 8192}),
        ("claude-opus-4-1-20250805", "low", {"type": "enabled", "budget_tokens": 1024}),
        ("claude-opus-4-6", "medium", {"type": "adaptive", "display": "summarized"}),
        ("claude-sonnet-4-5", "none", None),
    ],
)
def test_effort_is_told_as_the_model_takes_it(model: str, effort: str, thinking: Any):
    body = translate("openai", "anthropic", OPENAI | {"reasoning_effort": effort}, model=model)
    assert body.get("thinking") == thinking
    budget = (thinking or {}).get("budget_tokens", 0)
    assert body["max_tokens"] == 4096 + budget
    assert body.get("output_config") == ({"effort": effort} if "adaptive" in str(thinking) else None)


def test_a_budget_is_told_as_effort_or_tokens():
    asked = ANTHROPIC | {"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 2048}}
    assert translate("anthropic", "openai", asked)["reasoning_effort"] == "low"
    there = translate("anthropic", "google", asked, model="gemini-2.5-flash")["generationConfig"]
    assert there["thinkingConfig"] == {"thinkingBudget": 2048, "includeThoughts": True}
    there = translate("anthropic", "google", asked, model="gemini-3-pro")["generationConfig"]
    assert there["thinkingConfig"] == {"thinkingLevel": "low", "includeThoughts": True}


def test_reasoning_comes_back_to_who_can_check_it():
    details = [{"type": "reasoning.text", "text": "hm", "signature": "s"}]
    messages = json.loads(json.dumps(CALLING))
    asked = OPENAI | {"messages": messages, "tools": [tool()], "reasoning_effort": "low"}
    assert "thinking" not in translate("openai", "anthropic", asked, model="claude-sonnet-4-5")
    messages[2]["reasoning_details"] = details
    body = translate("openai", "anthropic", asked, model="claude-sonnet-4-5")
    assert body["thinking"]["type"] == "enabled"
    assert body["messages"][1]["content"][0] == {"type": "thinking", "thinking": "hm", "signature": "s"}
    messages[2] = messages[2] | {"reasoning_content": "hm", "reasoning_details": None}
    assert "reasoning_content" not in str(translate("openai", "openai", asked))
    assert translate("openai", "openai", asked, provider="deepseek")["messages"][2]["reasoning_content"] == "hm"


def test_a_failed_tool():
    blocks = [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]
    result = [
        {"type": "tool_result", "tool_use_id": "a", "is_error": True, "content": [{"type": "text", "text": "no"}]}
    ]
    messages = [*ANTHROPIC["messages"], {"role": "assistant", "content": blocks}, {"role": "user", "content": result}]
    body = translate("anthropic", "google", ANTHROPIC | {"messages": messages})
    assert body["contents"][2]["parts"][0]["functionResponse"]["response"] == {"error": "no"}
    body = translate("anthropic", "openai", ANTHROPIC | {"messages": messages})
    assert body["messages"][2] == {"role": "tool", "tool_call_id": "a", "content": "no"}


def test_what_is_harmless_is_left_out():
    """docs/translation.md lists it."""
    extra = {"store": True, "metadata": {"a": "b"}, "prompt_cache_key": "k", "logprobs": False, "logit_bias": {}}
    assert translate("openai", "anthropic", OPENAI | extra) == translate("openai", "anthropic", OPENAI)
    cached = ANTHROPIC | {"cache_control": {"type": "ephemeral"}, "service_tier": "auto"}
    assert translate("anthropic", "openai", cached) == translate("anthropic", "openai", ANTHROPIC)
    safe = GOOGLE | {"safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]}
    assert translate("google", "openai", safe) == translate("google", "openai", GOOGLE)


@pytest.mark.parametrize(
    ("path", "stream", "expected"),
    [
        ("/v1beta/models", False, "/v1beta/models/m:generateContent"),
        ("/v1beta/models/x:generateContent", True, "/v1beta/models/m:streamGenerateContent?alt=sse"),
        ("/v1beta/models/x:streamGenerateContent", False, "/v1beta/models/m:generateContent"),
    ],
)
def test_the_path_of_a_model_at_google(path: str, stream: bool, expected: str):
    ask = read_request(json.dumps(OPENAI | {"stream": stream}).encode(), "openai")
    assert path_of(ask, "google", path) == expected
    assert path_of(ask, "anthropic", "/v1/messages") == "/v1/messages"


IMAGE_RESULT = [
    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "a",
                "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}],
            }
        ],
    },
]
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("openai", "anthropic", {"seed": 1}, "seed"),
    ("openai", "anthropic", {"n": 2}, "n"),
    ("openai", "anthropic", {"temperature": 1.5}, "temperature"),
    ("openai", "anthropic", {"presence_penalty": 0.5}, "presence_penalty"),
    ("openai", "anthropic", {"frequency_penalty": -1}, "frequency_penalty"),
    ("openai", "anthropic", {"response_format": {"type": "json_object"}}, "response_format"),
    ("openai", "anthropic", {"reasoning_effort": "low", "max_tokens": 500}, "reasoning_effort"),
    ("openai", "anthropic", {"logprobs": True}, "logprobs"),
    ("openai", "google", {"logit_bias": {"5": 1}}, "logit_bias"),
    ("openai", "google", {"modalities": ["text", "audio"]}, "modalities"),
    ("openai", "google", {"audio": {"voice": "alloy"}}, "audio"),
    ("openai", "google", {"web_search_options": {"a": 1}}, "web_search_options"),
    ("openai", "google", {"functions": [{"name": "f"}]}, "functions"),
    ("openai", "google", {"service_tier": "flex"}, "service_tier"),
    ("openai", "google", {"verbosity": "low"}, "verbosity"),
    ("openai", "google", {"a_new_member": 1}, "a_new_member"),
    ("openai", "google", {"": 1}, '""'),
    ("openai", "google", {"tools": [tool()], "parallel_tool_calls": False}, "parallel_tool_calls"),
    ("openai", "google", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ("openai", "google", {"tools": [tool(kind=1)]}, "tools[0].function.kind"),
    (
        "openai",
        "google",
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        "messages[1].role",
    ),
    ("openai", "google", {"messages": [{"role": "function", "name": "f", "content": "a"}]}, "messages[0].role"),
    ("openai", "google", {"messages": [{"role": "user", "name": "Ann", "content": "a"}]}, "messages[0].name"),
    (
        "openai",
        "google",
        part({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}),
        "messages[0].content[0].image_url.url",
    ),
    (
        "openai",
        "anthropic",
        part({"type": "input_audio", "input_audio": {"format": "mp3", "data": "eA=="}}),
        "messages[0].content[0].input_audio",
    ),
    ("openai", "anthropic", part({"type": "file", "file": {"file_id": "f"}}), "messages[0].content[0].file.file_id"),
    ("openai", "anthropic", part({"type": "video_url", "video_url": {}}), "messages[0].content[0].type"),
    ("anthropic", "openai", {"top_k": 5}, "top_k"),
    ("anthropic", "openai", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ("anthropic", "openai", {"mcp_servers": [{"url": "https://example.com"}]}, "mcp_servers"),
    ("anthropic", "openai", {"container": "c"}, "container"),
    ("anthropic", "openai", {"speed": "fast"}, "speed"),
    ("anthropic", "openai", {"messages": IMAGE_RESULT}, "messages[1].content[0].content[0]"),
    ("anthropic", "google", {"messages": IMAGE_RESULT}, "messages[1].content[0].content[0]"),
    (
        "anthropic",
        "openai",
        {"messages": [{"role": "user", "content": [{"type": "search_result", "source": "s"}]}]},
        "messages[0].content[0].type",
    ),
    (
        "anthropic",
        "openai",
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
        "messages[0].content[0].source.type",
    ),
    ("google", "openai", {"generationConfig": {"topK": 5}}, "generationConfig.topK"),
    ("google", "openai", {"tools": [{"googleSearch": {}}]}, "tools[0].googleSearch"),
    ("google", "openai", {"tools": [{"code_execution": {}}]}, "tools[0].code_execution"),
    ("google", "openai", {"cachedContent": "cachedContents/x"}, "cachedContent"),
    ("google", "openai", {"generationConfig": {"speechConfig": {}}}, "generationConfig.speechConfig"),
    (
        "google",
        "openai",
        {"generation_config": {"response_modalities": ["AUDIO"]}},
        "generation_config.response_modalities",
    ),
    (
        "google",
        "openai",
        {"contents": [{"parts": [{"fileData": {"fileUri": "gs://bucket/a.png", "mimeType": "image/png"}}]}]},
        "contents[0].parts[0].fileData.fileUri",
    ),
    ("google", "anthropic", {"contents": [{"parts": [{"executableCode": {}}]}]}, "contents[0].parts[0].executableCode"),
    ("google", "anthropic", {"generationConfig": {"candidateCount": 2}}, "generationConfig.candidateCount"),
    # What does not belong where it stands
    (
        "openai",
        "google",
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c"}}]}]},
        "messages[0].content[0]",
    ),
    ("anthropic", "openai", {"system": [{"type": "thinking", "thinking": "a"}]}, "system[0].type"),
    (
        "anthropic",
        "openai",
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]},
        "messages[0].content[0].type",
    ),
    (
        "anthropic",
        "google",
        {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
        "messages[0].content[0].type",
    ),
    (
        "google",
        "openai",
        {"systemInstruction": {"parts": [{"inlineData": {"mimeType": "image/png", "data": PIXEL}}]}},
        "systemInstruction.parts[0]",
    ),
    ("google", "openai", {"contents": [{"parts": [{"functionCall": {"name": "f"}}]}]}, "contents[0].parts[0]"),
    ("google", "openai", {"contents": [{"parts": [{"text": "a", "thought": True}]}]}, "contents[0].parts[0]"),
]


@pytest.mark.parametrize(("client", "provider", "change", "param"), REFUSED)
def test_what_the_other_dialect_cannot_say_is_refused_by_name(
    client: str, provider: str, change: dict[str, Any], param: str
):
    translate(client, provider, BODIES[client])
    with pytest.raises(ObolError) as raised:
        translate(client, provider, BODIES[client] | change)
    assert (raised.value.code, raised.value.param) == ("forward_translation_not_supported", param)
    assert raised.value.status == 400 and param in raised.value.message


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("openai", {"temperature": "hot"}, "temperature"),
    ("openai", {"max_tokens": 1.5}, "max_tokens"),
    ("openai", {"messages": "hello"}, "messages"),
    ("openai", {"messages": [5]}, "messages[0]"),
    ("openai", {"messages": [{"content": "a"}]}, "messages[0].role"),
    ("openai", {"stop": [1]}, "stop"),
    ("openai", part({"type": "image_url", "image_url": {"url": "file:a"}}), "messages[0].content[0].image_url.url"),
    (
        "openai",
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ("openai", {"messages": [{"role": "tool", "tool_call_id": "z", "content": "a"}]}, "messages[0].tool_call_id"),
    ("openai", {"n": 0}, "n"),
    ("anthropic", {"max_tokens": None}, "max_tokens"),
    ("anthropic", {"tool_choice": {}}, "tool_choice.type"),
    ("anthropic", {"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ("anthropic", {"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ("anthropic", {"thinking": {"budget_tokens": 2000}}, "thinking.type"),
    ("google", {"generationConfig": {"topP": 0.1, "top_p": 0.9}}, "generationConfig.top_p"),
    ("anthropic", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ("google", {"contents": [{"parts": [{"inlineData": {"mimeType": "a"}}]}]}, "contents[0].parts[0].inlineData.data"),
]


@pytest.mark.parametrize(("client", "change", "param"), INVALID)
def test_bad_requests_are_told_by_field(client: str, change: dict[str, Any], param: str):
    provider = "openai" if client == "google" else "google"
    with pytest.raises(ObolError) as raised:
        translate(client, provider, BODIES[client] | change)
    assert (raised.value.code, raised.value.param) == ("invalid_request", param)


def reading_s(number: int) -> float:
    calls = [{"functionCall": {"id": f"a{n}", "name": "f"}} for n in range(number)]
    results = [{"functionResponse": {"id": f"z{n}", "name": "f"}} for n in range(number)]
    google = {"contents": [{"role": "model", "parts": calls}, {"role": "user", "parts": results}]}
    openai = {"model": "m", "messages": [{"role": "tool", "tool_call_id": "a", "content": "b"}] * number}
    began_s = time.process_time()
    assert len(read_request(json.dumps(google).encode(), "google", model="m").messages[1].parts) == number
    assert len(read_request(json.dumps(openai).encode(), "openai").messages[0].parts) == number
    return time.process_time() - began_s


def test_many_calls_and_results_take_no_longer_each():
    """20,000 took 15 s when each looked at all others: 44 times as long as 2,000, not 17."""
    assert reading_s(20_000) < 28 * reading_s(2_000)


def test_a_body_of_too_many_levels_is_refused():
    deep = b'{"model":"m","messages":[],"metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(ObolError, match="not a JSON object"):
        read_request(deep, "openai")
    nested: dict[str, Any] = {"type": "OBJECT"}
    for _ in range(100):
        nested = {"type": "OBJECT", "properties": {"a": nested}}
    body = GOOGLE | {"tools": [{"functionDeclarations": [{"name": "f", "parameters": nested}]}]}
    with pytest.raises(ObolError) as raised:
        translate("google", "openai", body)
    assert raised.value.code == "forward_translation_not_supported"


# A request with every object that is read. `RAW` holds what the gateway passes on as it is, or leaves out.
RAW = {"parameters", "schema", "input_schema", "input", "args", "response", "cache_control", "parametersJsonSchema"}
RICH: dict[str, dict[str, Any]] = {
    "openai": OPENAI
    | {
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [tool()],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": WEATHER}},
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
                    {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PIXEL}"}},
                ],
            },
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "a",
                        "function": {"name": "f", "arguments": "{}"},
                        "extra_content": {"google": {"thought_signature": "s"}},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "b"},
        ],
    },
    "anthropic": ANTHROPIC
    | {
        "system": [{"type": "text", "text": "a"}],
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": WEATHER}},
        "tools": [{"name": "f", "input_schema": WEATHER}],
        "tool_choice": {"type": "tool", "name": "f"},
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": PIXEL},
                        "citations": {"enabled": False},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "a", "signature": "s"},
                    {"type": "redacted_thinking", "data": "a"},
                    {"type": "tool_use", "id": "a", "name": "f", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "b"}]}],
            },
        ],
    },
    "google": {
        "systemInstruction": {"parts": [{"text": "a"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "a"}, {"inlineData": {"mimeType": "image/png", "data": PIXEL}}]},
            {"role": "user", "parts": [{"fileData": {"mimeType": "image/png", "fileUri": "https://example.com/a"}}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s"}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"output": "a"}}}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": WEATHER}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "generationConfig": {"maxOutputTokens": 2000, "thinkingConfig": {"thinkingBudget": 1024}},
    },
}


def objects(value: Any, at: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every object in a request that is read member by member, with its path."""
    if isinstance(value, list):
        return [found for number, one in enumerate(value) for found in objects(one, f"{at}[{number}]")]
    if not isinstance(value, dict):
        return []
    inner = [(f"{at}.{name}" if at else name, member) for name, member in value.items() if name not in RAW]
    return [(at, value), *(found for path, member in inner for found in objects(member, path))]


@pytest.mark.parametrize("client", ["openai", "anthropic", "google"])
def test_a_member_that_nobody_knows_is_refused_wherever_it_stands(client: str):
    provider = "openai" if client == "anthropic" else "anthropic"
    translate(client, provider, RICH[client])
    paths = [path for path, _ in objects(RICH[client])]
    assert len(paths) > 14
    for number, path in enumerate(paths):
        body = json.loads(json.dumps(RICH[client]))
        objects(body)[number][1]["newMember"] = 1
        with pytest.raises(ObolError) as raised:
            translate(client, provider, body)
        expected = f"{path}.newMember" if path else "newMember"
        assert (raised.value.code, raised.value.param) == ("forward_translation_not_supported", expected)
