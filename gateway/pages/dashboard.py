"""The dashboard: one page that reads the REST API with a secret key its visitor gives. Here are only its files.

The page holds the key and calls `/v1` from the browser, so this module knows no merchant and needs no login.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

_STATIC = Path(__file__).parent / "static"
_PAGE = "dashboard.html"
_CONTENT_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # A page and scripts of different releases must never meet, so every use asks whether they are still the same.
    "Cache-Control": "no-cache",
}


def routes() -> list[web.RouteDef]:
    """GET and HEAD of `/dashboard` and of each file it loads. The files are read here, once; OSError if one is gone."""
    scripts_and_styles = [path for path in sorted(_STATIC.iterdir()) if path.suffix in (".css", ".js")]
    return [
        web.get("/dashboard", serving(_STATIC / _PAGE)),
        web.get("/dashboard/", _without_slash),
        *(web.get(f"/dashboard/static/{path.name}", serving(path)) for path in scripts_and_styles),
    ]


def serving(path: Path) -> Handler:
    """A handler that answers with the file, or with 304 where the browser has it already."""
    body, content_type = path.read_bytes(), _CONTENT_TYPES[path.suffix]
    tag = hashlib.sha256(body).hexdigest()[:32]

    async def serve(request: web.Request) -> web.Response:
        known = any(given.value in (tag, "*") for given in request.if_none_match or ())
        if known:
            response = web.Response(status=304, headers=_HEADERS)
        else:
            response = web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)
        response.etag = tag
        return response

    return serve


async def _without_slash(_: web.Request) -> web.Response:
    """The page names its files relative to its own address, so that a proxy may serve all of Obol under a prefix."""
    return web.Response(status=308, headers={**_HEADERS, "Location": "../dashboard"})
