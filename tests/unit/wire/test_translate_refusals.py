"""Requests that cannot be said in another dialect, or in none: refused by the name of their field."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from asked import ANTHROPIC, BODIES, GOOGLE, OPENAI, PIXEL, WEATHER, part, tool, translate

from gateway.errors import ObolError
from gateway.wire.translate.translation import read_request

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
