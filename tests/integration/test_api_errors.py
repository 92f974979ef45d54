"""What every route has in common: credentials, JSON errors, bodies."""

from __future__ import annotations

import base64
import gzip
import json
import logging

import pytest
from api_fixtures import Api, api_fixture  # noqa: F401

from gateway.api.reading import BODY_MAX_BYTES


@pytest.mark.parametrize(
    "key", ["", "aks_live_unknown", "sk-openai", "aks_live_x.cons_live_y.ps_live_z", "aks_" + "x" * 5000]
)
async def test_no_secret_key_no_answer(api: Api, key: str) -> None:
    reply = await api.call("GET", "/v1/requests", key=key)
    assert (reply.status, reply.body["error"]["code"]) == (401, "unauthorized")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert not key or key not in str(reply.body)


async def test_a_forward_token_is_refused_and_the_message_says_so(api: Api) -> None:
    token = base64.b64encode(json.dumps({"secret_key": api.merchant.secret_key}).encode()).decode()
    reply = await api.call("GET", "/v1/requests", key=token)
    assert reply.status == 401
    assert "forward tokens" in reply.body["error"]["message"]


async def test_x_api_key_is_accepted(api: Api) -> None:
    async with api.client.get("/v1/meters", headers={"x-api-key": api.merchant.secret_key}) as response:
        assert response.status == 200


async def test_unknown_paths_and_methods_are_json(api: Api) -> None:
    missing = await api.call("GET", "/v1/nothing")
    assert (missing.status, missing.body["error"]["code"]) == (404, "not_found")
    wrong = await api.call("PUT", "/v1/meters")
    assert (wrong.status, wrong.body["error"]["code"]) == (405, "method_not_allowed")
    assert set(wrong.headers["Allow"].split(",")) >= {"GET", "POST"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"request_id": }', "line 1 column 16"),
        (b"{" * 5_000, "JSON"),
        (b"[" * 5_000, "JSON"),
        (b"{" * 100_000, "more than 10000 values"),
        (b"[" * 100_000, "more than 10000 values"),
        (b"[]", "object"),
        (b"\xff{}", "UTF-8 at byte 0"),
        (b'{"input_tokens": NaN}', "NaN"),
        (b'{"input_tokens": ' + b"9" * 5_000 + b"}", "JSON"),
        (b'{"input_tokens": 1e99999999999999999999}', "JSON"),
    ],
)
async def test_a_body_that_is_no_json_object(api: Api, raw: bytes, words: str) -> None:
    reply = await api.call("POST", "/v1/requests", raw=raw)
    assert (reply.status, reply.body["error"]["code"]) == (400, "invalid_request")
    assert words in reply.body["error"]["message"]


async def test_a_body_has_a_limit_packed_or_not(api: Api) -> None:
    big = b'{"name":"' + b"x" * BODY_MAX_BYTES + b'"}'
    assert (await api.call("POST", "/v1/meters", raw=big)).status == 413
    headers = {"Authorization": f"Bearer {api.merchant.secret_key}", "Content-Encoding": "gzip"}
    async with api.client.post("/v1/meters", data=gzip.compress(big), headers=headers) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "body_too_large"


async def test_an_empty_body_is_accepted_where_nothing_is_read(api: Api) -> None:
    assert (await api.call("GET", "/v1/meters", raw=b"")).status == 200
    assert (await api.call("PATCH", "/v1/meters/tokens", raw=b"")).status == 200
    assert (await api.call("DELETE", "/v1/meters/tokens", raw=b"")).status == 200


async def test_an_error_of_ours_tells_nothing_and_is_logged(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(api.store, "rows", fail)
    with caplog.at_level(logging.ERROR, "obol.api"):
        reply = await api.call("GET", "/v1/meters")
    assert (reply.status, reply.body["error"]["code"]) == (500, "internal")
    assert "secret detail" not in str(reply.body)
    record = next(record for record in caplog.records if record.name == "obol.api")
    assert record.__dict__["request_id"] == reply.body["error"]["request_id"]


async def test_postgres_away_is_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.call("GET", "/v1/meters")
    await api.store.close()
    reply = await api.call("GET", "/v1/meters")
    assert (reply.status, reply.body["error"]["code"]) == (503, "store_unavailable")
    assert reply.headers["Retry-After"] == "1"
