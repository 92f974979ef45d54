"""What each dialect's request becomes in the others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asked import ANTHROPIC, GOOGLE, OPENAI, PIXEL, WEATHER, part, tool, translate

from gateway.wire.translate.gemini.request_writer import NO_SIGNATURE
from gateway.wire.translate.translation import path_of, read_request

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
