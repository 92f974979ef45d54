"""The addresses that a checkout session's token leads to: embedded, and as a link. What they say is that there is
no hosted checkout in this version."""

from __future__ import annotations

from aiohttp import web

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>Checkout is not available</title>
<style>
  body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: #f6f6f4; color: #1b1b1a;
         font: 16px/1.5 system-ui, sans-serif }
  main { max-width: 32rem; padding: 2rem }
  @media (prefers-color-scheme: dark) { body { background: #181817; color: #ecebe7 } }
</style>
<main>
<h1>Checkout is not available yet</h1>
<p>This version of Obol stores checkout sessions, but has no checkout page.
Nothing was charged, and nothing was changed.</p>
<p>Please go back to the app that sent you here.</p>
</main>
</html>
"""
_HEADERS = {
    # Whoever embeds it may show it: there is nothing on it to be clicked.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def routes() -> list[web.RouteDef]:
    """GET and HEAD. A token is base64 of JSON and so begins with eyJ; the published emails have it behind the host."""
    paths = ("/embed/checkout/{secret}", "/checkout/{token}", "/{token:eyJ[A-Za-z0-9+=]+}")
    return [web.get(path, _not_available) for path in paths]


async def _not_available(_: web.Request) -> web.Response:
    return web.Response(status=501, text=_PAGE, content_type="text/html", charset="utf-8", headers=_HEADERS)
