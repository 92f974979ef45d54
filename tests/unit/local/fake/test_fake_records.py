"""The fake provider tells what it has seen."""

from __future__ import annotations

import asyncio
import gzip
import hashlib

import orjson
from fake_calls import CHAT, chat
from yarl import URL

from gateway.local.fake.records import RECORDS_MAX, RequestLog
from gateway.testing import steering_header


async def test_the_log_tells_what_was_sent(http, provider):
    body = orjson.dumps(chat())
    headers = {"Authorization": "Bearer sk-secret", "X-Odd-Case": "Yes", "Host": "api.openai.com"}
    async with http.post(URL(f"{provider.url}{CHAT}?a=%2F", encoded=True), data=body, headers=headers) as response:
        assert response.status == 200
        sent = await response.read()
    async with http.get(f"{provider.url}/_fake/requests") as response:
        log = await response.json()
    assert log["count"] == 1
    assert log["outcomes"] == {"completed": 1}
    record = log["requests"][0]
    assert ["X-Odd-Case", "Yes"] in record["headers"]
    assert (record["method"], record["path"], record["host"]) == ("POST", f"{CHAT}?a=%2F", "api.openai.com")
    assert (record["body_bytes"], record["body_sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert (record["json"], record["status"], record["response_bytes"]) == (chat(), 200, len(sent))
    assert provider.requests[0].header("authorization") == "Bearer sk-secret"
    async with http.delete(f"{provider.url}/_fake/requests") as response:
        assert response.status == 204
    assert (provider.requests, provider.request_count) == ([], 0)


async def test_the_log_notes_a_client_that_went(http, provider):
    headers = steering_header(chunks=100, chunk_delay_ms=20)
    async with http.post(provider.url + CHAT, json=chat(stream=True), headers=headers) as response:
        await response.content.readany()
        response.close()
    await asyncio.sleep(0.1)
    assert provider.requests[0].outcome == "disconnected"


async def test_a_compressed_request_is_read_and_recorded_as_sent(http, provider):
    body = gzip.compress(orjson.dumps(chat()))
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with http.post(provider.url + CHAT, data=body, headers=headers) as response:
        assert response.status == 200
    assert provider.requests[0].body_sha256 == hashlib.sha256(body).hexdigest()


def test_the_log_is_bounded():
    log = RequestLog()
    for _ in range(RECORDS_MAX + 5):
        log.open("GET", "/", "h", [])
    assert (log.count, len(log.latest())) == (RECORDS_MAX + 5, RECORDS_MAX)
    assert [record.number for record in log.latest(2)] == [RECORDS_MAX + 4, RECORDS_MAX + 5]
