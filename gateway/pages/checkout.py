"""The hosted checkout: one address a session, which shows the step that the session waits for and takes its form.

    /checkout/<secret>          a page of its own
    /embed/checkout/<secret>    in an iframe of the session's origin, which hears how it ended
    /checkout/<token>, /<token> the link of emails: the token is base64 of {"secret", "base"}

A form that was taken is answered with a redirect to the page, one that was not with the page and what is wrong. Who has
proven the phone is known by a cookie of this session, or, in a browser that keeps none here, by a field of the forms;
what the session has come to is in PostgreSQL.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from gateway.api import reading
from gateway.api.context import ApiContext
from gateway.billing.checkout import Checkouts
from gateway.billing.checkout_state import PROOF_S, Progress, step_of
from gateway.billing.payers import Contact
from gateway.cards.contract import OutcomeUnknown, ProcessorRefused
from gateway.errors import ObolError
from gateway.pages import checkout_html
from gateway.pages.checkout_html import Shown
from gateway.pages.dashboard import serving

_STATIC = Path(__file__).parent / "checkout_static"
_TOKEN_MAX_CHARACTERS = 1_000
_NO_PROOF = "-"
_STRIPE = "https://js.stripe.com"
_SECRET = re.compile("css_[A-Za-z0-9_-]+")
_DOLLARS = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,2}))?")
Form = dict[str, str]
Act = Callable[[str, str, Form], Awaitable[str | None]]
"""Of secret, proof and form: a new proof, or None."""


class _Token(msgspec.Struct):
    secret: str


def routes(context: ApiContext) -> list[web.RouteDef]:
    """GET, HEAD and POST. A token begins with eyJ, as base64 of JSON does."""
    pages = CheckoutPages(context)
    token = "{token:eyJ[A-Za-z0-9+=]+}"  # noqa: S105 - a pattern
    shown = [f"{path}/{{secret:{_SECRET.pattern}}}" for path in ("/checkout", "/embed/checkout")]
    return [
        *(web.get(f"{path}/{token}", pages.opened) for path in ("/checkout", "")),
        *(web.get(path, pages.show) for path in shown),
        *(web.post(path, pages.take) for path in shown),
        *(web.get(f"/checkout/static/{path.name}", serving(path)) for path in sorted(_STATIC.iterdir())),
        web.get("/checkout.js", serving(_STATIC / "checkout.js")),
    ]


class CheckoutPages:
    """The handlers."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    @property
    def _checkouts(self) -> Checkouts:
        assert self._context.checkouts is not None, "this process serves no pages"
        return self._context.checkouts

    async def opened(self, request: web.Request) -> web.Response:
        """The link of an email. Only the secret of its token is used: the host is this one."""
        token = request.match_info["token"]
        try:
            secret = msgspec.json.decode(b64decode(token[:_TOKEN_MAX_CHARACTERS], validate=True), type=_Token).secret
        except (ValueError, msgspec.MsgspecError):
            return _refused(request, ObolError("not_found", "this link is not whole: copy all of it"))
        if _SECRET.fullmatch(secret) is None:
            return _refused(request, ObolError("not_found", "there is no such checkout"))
        return web.Response(status=303, headers={"Location": f"/checkout/{secret}", "Cache-Control": "no-store"})

    async def show(self, request: web.Request) -> web.Response:
        try:
            response = await self._page(request, {}, None, _proof(request, {}))
        except ObolError as error:
            return _refused(request, error)
        if not _keeps_cookies(request):
            self._keep(request, response, _NO_PROOF)
        return response

    async def take(self, request: web.Request) -> web.Response:
        """A form. One for a step that is over changes nothing: the page shows the one that is next."""
        secret, form = request.match_info["secret"], {}
        try:
            _refuse_foreign(request, self._context.settings.public_url)
            form = await reading.form(request)
            act = self._acts().get(form.get("act", ""))
            if act is None:
                raise reading.invalid("act", "is not known")
            proof = await act(secret, _proof(request, form), form)
        except ObolError as error:
            return await self._again(request, form, error)
        except (OutcomeUnknown, ProcessorRefused):
            text = "the card processor does not answer as expected: try again in a minute"
            return await self._again(request, form, ObolError("upstream_failed", text))
        response = await self._next(request, proof or _proof(request, form))
        if proof is not None:
            self._keep(request, response, proof)
        return response

    async def _next(self, request: web.Request, proof: str) -> web.Response:
        """A redirect to the page. A browser that would come without its proof gets the page itself, and the proof in
        its forms."""
        if _keeps_cookies(request):
            return web.Response(status=303, headers={"Location": request.path, "Cache-Control": "no-store"})
        try:
            return await self._page(request, {}, None, proof)
        except ObolError as error:
            return _refused(request, error)

    def _acts(self) -> dict[str, Act]:
        return {
            "send": self._send,
            "other_phone": self._other_phone,
            "code": self._code,
            "contact": self._contact,
            "card": self._card,
            "card_entered": self._card_entered,
            "approve_card": self._approve_card,
            "other_card": self._other_card,
            "same_card": self._same_card,
            "confirm": self._confirm,
            "approve_payment": self._approve_payment,
        }

    async def _send(self, secret: str, _: str, form: Form) -> None:
        await self._checkouts.send_code(secret, form.get("phone", "").strip())

    async def _other_phone(self, secret: str, _: str, __: Form) -> None:
        await self._checkouts.other_phone(secret)

    async def _code(self, secret: str, _: str, form: Form) -> str:
        return await self._checkouts.check_code(secret, form.get("code", "").replace(" ", ""))

    async def _contact(self, secret: str, proof: str, form: Form) -> None:
        contact = Contact(*(form.get(name, "") for name in ("email", "first_name", "last_name")))
        await self._checkouts.give_contact(secret, proof, contact)

    async def _card(self, secret: str, proof: str, form: Form) -> None:
        await self._checkouts.enter_card(secret, proof, *(form.get(name, "") for name in ("number", "expiry", "cvc")))

    async def _card_entered(self, secret: str, proof: str, _: Form) -> None:
        await self._checkouts.card_entered(secret, proof)

    async def _approve_card(self, secret: str, proof: str, form: Form) -> None:
        await self._checkouts.approve_card(secret, proof, approved=form.get("approved") == "yes")

    async def _other_card(self, secret: str, proof: str, _: Form) -> None:
        await self._checkouts.other_card(secret, proof, wanted=True)

    async def _same_card(self, secret: str, proof: str, _: Form) -> None:
        await self._checkouts.other_card(secret, proof, wanted=False)

    async def _confirm(self, secret: str, proof: str, form: Form) -> None:
        await self._checkouts.confirm(secret, proof, _cents(form))

    async def _approve_payment(self, secret: str, proof: str, form: Form) -> None:
        approved = {"yes": True, "no": False}.get(form.get("approved", ""))
        await self._checkouts.approve_payment(secret, proof, approved=approved)

    async def _again(self, request: web.Request, form: Form, error: ObolError) -> web.Response:
        proof = _proof(request, form)
        if error.code == "request_in_progress" and error.retry_after_s is None:
            return await self._next(request, proof)
        try:
            return await self._page(request, form, error, proof)
        except ObolError as worse:
            return _refused(request, worse)

    async def _page(self, request: web.Request, form: Form, error: ObolError | None, proof: str) -> web.Response:
        progress = await self._checkouts.read(request.match_info["secret"], proof)
        shown = await self._shown(request, progress, form, error)
        if progress.proven and not _keeps_cookies(request):
            shown = msgspec.structs.replace(shown, proof=proof)
        page = checkout_html.page(shown)
        headers = _headers(progress, embedded=shown.embedded, stripe=bool(shown.publishable_key))
        status = error.status if error is not None else 200
        return web.Response(text=page, status=status, content_type="text/html", charset="utf-8", headers=headers)

    async def _shown(self, request: web.Request, progress: Progress, form: Form, error: ObolError | None) -> Shown:
        step, embedded = step_of(progress), _embedded(request)
        offer = quote = None
        try:
            offer = await self._checkouts.offer(progress)
            quote = offer.quote(_offered_cents(form))
        except ObolError as missing:
            if step not in ("done", "expired"):
                raise
            error = error if step == "done" else missing
        client_secret = publishable_key = ""
        if step == "card":
            try:
                _, setup = await self._checkouts.setup(progress, request.match_info["secret"])
            except (OutcomeUnknown, ProcessorRefused):
                raise ObolError("upstream_failed", "cards cannot be added at the moment: try again soon") from None
            client_secret, publishable_key = setup.client_secret, setup.publishable_key
        elif step == "payment_approval" and progress.charge is not None:
            client_secret = progress.charge.action or ""
            if progress.charge.processor == "stripe":
                settings = self._context.settings
                keys = {"test": settings.stripe_test_publishable_key, "live": settings.stripe_live_publishable_key}
                publishable_key = keys[progress.mode]
        return Shown(
            progress=progress,
            step=step,
            embedded=embedded,
            offer=offer,
            quote=quote,
            form=form,
            error=error,
            client_secret=client_secret,
            publishable_key=publishable_key,
        )

    def _keep(self, request: web.Request, response: web.Response, proof: str) -> None:
        """In an iframe of another site only a secure, partitioned cookie is kept. Browsers take it of loopback, too."""
        local = request.url.host in ("localhost", "127.0.0.1", "::1")
        secure = local or (self._context.settings.public_url or str(request.url)).startswith("https:")
        where = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
        # Written out: http.cookies of Python 3.11 does not know Partitioned. The proof needs no quoting.
        response.headers["Set-Cookie"] = f"{_cookie(request)}={proof}; Path=/; Max-Age={PROOF_S}; HttpOnly; {where}"


def _embedded(request: web.Request) -> bool:
    return request.path.startswith("/embed/")


def _cookie(request: web.Request) -> str:
    """One a session."""
    return "obol_checkout_" + hashlib.sha256(request.match_info["secret"].encode()).hexdigest()[:16]


def _keeps_cookies(request: web.Request) -> bool:
    """The first page sets one, to find out."""
    return _cookie(request) in request.cookies


def _proof(request: web.Request, form: Form) -> str:
    kept = request.cookies.get(_cookie(request), _NO_PROOF)
    return form.get("proof", "") if kept == _NO_PROOF else kept


def _refuse_foreign(request: web.Request, public_url: str) -> None:
    """The merchant's page knows the address and must not send forms to it. Every browser says where a form comes from:
    the older ones, and all of them without TLS, by its origin."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    hosts = {request.host, urlsplit(public_url).netloc} - {""}
    here = site == "same-origin" if site else urlsplit(origin or "").netloc in hosts
    if not here:
        raise ObolError("invalid_request", "this form must be sent from its own page", param="origin")


def _cents(form: Form) -> int | None:
    """Of the amount that was chosen, or typed: dollars, with cents or without."""
    chosen = form.get("amount", "")
    text = form.get("other_amount", "") if chosen in ("", "other") else chosen
    text = text.strip().removeprefix("$").replace(",", "")
    if not text:
        return None
    found = _DOLLARS.fullmatch(text)
    if found is None:
        raise ObolError("invalid_request", "the amount is in dollars and cents, such as 25.00", param="amount")
    return int(found[1]) * 100 + int((found[2] or "").ljust(2, "0"))


def _offered_cents(form: Form) -> int | None:
    """What a quote is shown for before the customer has chosen."""
    try:
        return _cents(form)
    except ObolError:
        return None


def _headers(progress: Progress | None, *, embedded: bool, stripe: bool = False) -> dict[str, str]:
    """Only the session's own origin may embed it. A page about no session at all may be shown by whoever asked."""
    ancestors = (
        (checkout_html.origin_of(progress.origin_url) if progress is not None else "*") if embedded else "'none'"
    )
    policy = [
        "default-src 'none'",
        f"script-src 'self' {_STRIPE}" if stripe else "script-src 'self'",
        "style-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'self'",
        f"frame-ancestors {ancestors}",
    ]
    if stripe:
        policy += [f"frame-src {_STRIPE} https://hooks.stripe.com", "connect-src https://api.stripe.com"]
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        # To its own address only: with "no-referrer" forms would not say which page they come from.
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "X-Robots-Tag": "noindex",
    }
    return headers if embedded else {**headers, "X-Frame-Options": "DENY"}


def _refused(request: web.Request, error: ObolError) -> web.Response:
    """No session to show. Embedded, it can be closed."""
    embedded = _embedded(request)
    page = checkout_html.error_page(error.message, embedded=embedded)
    headers = _headers(None, embedded=embedded)
    return web.Response(text=page, status=error.status, content_type="text/html", charset="utf-8", headers=headers)
