"""`/openapi.json` and `/docs`: the table of operations, published.

Both are made at the first call, in a thread, and kept.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
from aiohttp import web

from gateway.api import docs_page, html, openapi
from gateway.api.operation import Operation


class File(NamedTuple):
    """What is served, and its entity tag."""

    body: bytes
    tag: str
    content_type: str
    headers: Mapping[str, str]


class Published:
    """The two files and their routes."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._making = asyncio.Lock()
        self._made: tuple[File, File] | None = None

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/openapi.json", self.document), web.get("/docs", self.page)]

    async def document(self, request: web.Request) -> web.Response:
        return _served(request, (await self._files())[0])

    async def page(self, request: web.Request) -> web.Response:
        return _served(request, (await self._files())[1])

    async def _files(self) -> tuple[File, File]:
        async with self._making:
            if self._made is None:
                self._made = await asyncio.to_thread(_make, self._operations)
            return self._made


def _make(operations: Sequence[Operation]) -> tuple[File, File]:
    document = openapi.document(operations)
    return (
        _file(msgspec.json.encode(document), "application/json", {}),
        _file(docs_page.page(document).encode(), "text/html", html.headers()),
    )


def _file(body: bytes, content_type: str, headers: Mapping[str, str]) -> File:
    return File(body, hashlib.sha256(body).hexdigest()[:32], content_type, {**headers, "Cache-Control": "no-cache"})


def _served(request: web.Request, file: File) -> web.Response:
    """The file, or 304 where the caller has it already."""
    if any(given.value in (file.tag, "*") for given in request.if_none_match or ()):
        response = web.Response(status=304, headers=file.headers)
    else:
        response = web.Response(body=file.body, content_type=file.content_type, charset="utf-8", headers=file.headers)
    response.etag = file.tag
    return response
