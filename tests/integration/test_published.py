"""/openapi.json and /docs of a running API."""

from __future__ import annotations

import base64
import hashlib
import re

import msgspec
import pytest
from api_fixtures import Api
from shared_api import shared_api  # noqa: F401

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_document_and_the_page_are_public_and_cached(api: Api) -> None:
    for path, kind in (("/openapi.json", "application/json"), ("/docs", "text/html")):
        async with api.client.get(path) as response:
            assert (response.status, response.content_type) == (200, kind)
            body, tag = await response.read(), response.headers["ETag"]
        async with api.client.get(path, headers={"If-None-Match": tag}) as response:
            assert (response.status, await response.read(), response.headers["ETag"]) == (304, b"", tag)
        async with api.client.get(path, headers={"If-None-Match": '"other"'}) as response:
            assert (response.status, await response.read()) == (200, body)
    async with api.client.get("/openapi.json") as response:
        document = msgspec.json.decode(await response.read())
    assert document["openapi"] == "3.1.0"
    assert "/v1/requests" in document["paths"]


async def test_the_page_loads_nothing_but_its_own_style(api: Api) -> None:
    async with api.client.get("/docs") as response:
        page, policy = await response.text(), response.headers["Content-Security-Policy"]
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    told = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{told}'" in policy
    assert "default-src 'none'" in policy
    assert re.findall(r"<(?:script|img|iframe|object)|\bon\w+=", page) == []


async def test_what_can_be_read_can_be_asked_for_its_head(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.merchant.secret_key}"}
    for path in ("/openapi.json", "/v1/meters"):
        async with api.client.head(path, headers=headers) as response:
            assert (response.status, await response.read()) == (200, b"")
