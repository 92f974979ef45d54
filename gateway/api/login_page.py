"""The HTML of the login."""

from __future__ import annotations

from html import escape
from typing import Protocol

from aiohttp import web

from gateway.api.html import framed, headers

_TITLE = "Log in to Obol"


class Listening(Protocol):
    """Who waits for the code."""

    @property
    def port(self) -> int: ...

    @property
    def state(self) -> str: ...


def answer_page(page: str, status: int = 200, *, port: int | None = None) -> web.Response:
    """`port`: the form may be answered with a redirect to it, which browsers hold against the policy, too."""
    action = "'self'" if port is None else f"'self' http://127.0.0.1:{port}"
    told = {**headers(action), "Cache-Control": "no-store"}
    return web.Response(text=page, status=status, content_type="text/html", charset="utf-8", headers=told)


def key_page(listener: Listening, error: str = "") -> str:
    """Which merchant: its secret key is asked for."""
    shown = f'<p class="error" role="alert">{escape(error)}</p>' if error else ""
    return _page(
        f"""{shown}<p>A program on this computer (port {listener.port}) asks for a secret key of its own. Give one of
the merchant's secret keys; the next page shows whose it is.</p>
<form method="post" autocomplete="off">{_hidden(listener)}
<label for="key">Secret key</label>
<input id="key" name="secret_key" type="password" placeholder="aks_..." required maxlength="255" autocomplete="off"
 spellcheck="false" autocapitalize="off">
<button>Continue</button></form>
<p><small>If you did not just start such a program, close this page.</small></p>"""
    )


def approval_page(listener: Listening, name: str, mode: str, approval: str, *, wallet_key: bool) -> str:
    """Whose key it is, and who will get another one. `wallet_key`: a wallet key besides."""
    besides = " It gets a wallet key as well, which makes spend keys and ends with that key." if wallet_key else ""
    return _page(
        f"""<p>The program that listens on port <strong>{listener.port}</strong> of this computer will get a new secret
key of <strong>{escape(name)}</strong> ({escape(mode)} data). The key can do all that yours can; revoke it under the
name “CLI login”.{besides}</p>
<form method="post">{_hidden(listener)}<input type="hidden" name="approval" value="{escape(approval)}">
<button>Approve</button></form>"""
    )


def error_page(message: str) -> str:
    return _page(f'<p class="error" role="alert">{escape(message)}</p><p>Please start the login again.</p>')


def _page(body: str) -> str:
    return framed(_TITLE, f"<main><h1>{_TITLE}</h1>{body}</main>")


def _hidden(listener: Listening) -> str:
    return (
        f'<input type="hidden" name="port" value="{listener.port}">'
        f'<input type="hidden" name="state" value="{escape(listener.state)}">'
    )
