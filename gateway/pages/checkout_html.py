"""The HTML of the checkout: a step is a heading, what is sold, one form, and what went wrong with it."""

from __future__ import annotations

from html import escape
from typing import Final
from urllib.parse import urlencode, urlsplit, urlunsplit

import msgspec

from gateway.billing.checkout import declined_text
from gateway.billing.checkout_reading import Offer
from gateway.billing.checkout_state import Progress, Quote, Step
from gateway.core.collection import NANO_A_CENT
from gateway.core.money import format_nano
from gateway.errors import ObolError
from gateway.pages.checkout_fields import buttons, field, form_of, radios
from gateway.phones.contract import masked

_HEADINGS: Final[dict[Step, str]] = {
    "phone": "Your phone number",
    "code": "Enter the code",
    "contact": "Your name and email",
    "card": "Add a card",
    "card_approval": "Your bank asks",
    "confirm": "Confirm",
    "paying": "Payment is being made",
    "payment_approval": "Your bank asks",
    "done": "Thank you",
    "expired": "This checkout has ended",
}
_STEPS: Final[tuple[tuple[Step, ...], ...]] = (
    ("phone", "code"),
    ("contact",),
    ("card", "card_approval"),
    ("confirm", "paying", "payment_approval"),
)
_PRESETS: Final = (10, 25, 50, 100)


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A step as it is shown: `form` is what was sent and not taken, `error` why."""

    progress: Progress
    step: Step
    embedded: bool
    offer: Offer | None
    quote: Quote | None
    form: dict[str, str]
    error: ObolError | None
    client_secret: str = ""
    publishable_key: str = ""
    proof: str = ""
    """For the forms of a browser that keeps no cookie here."""

    @property
    def sandbox(self) -> bool:
        """Whether no money moves, and nothing of a processor's is loaded."""
        return self.progress.mode == "test" and not self.publishable_key


def page(shown: Shown) -> str:
    progress = shown.progress
    told = {"origin": origin_of(progress.origin_url), "session": progress.checkout_session_id, "step": shown.step}
    if progress.completed:
        told["connection"] = progress.session_connection_id or ""
    body = f"{_said_wrong(shown)}{_summary(shown)}{_BODIES[shown.step](shown)}"
    heading = _HEADINGS[shown.step]
    head = '<meta http-equiv="refresh" content="3">' if shown.step == "paying" else ""
    panel = f"""<header><p class="merchant">{escape(progress.merchant)}</p>{_close(shown.embedded)}</header>
{_place(shown.step)}<h1 id="heading">{heading}</h1>
{body}
{_footer(shown)}"""
    title = f"{'Error: ' if shown.error else ''}{heading} – {progress.merchant}"
    return _document(title, panel, told, embedded=shown.embedded, head=head, stripe=bool(shown.publishable_key))


def error_page(message: str, *, embedded: bool) -> str:
    """Of no session: what can be done is to close it."""
    panel = f"""<header><p class="merchant">Checkout</p>{_close(embedded)}</header>
<h1 id="heading">This checkout cannot be shown</h1>
<p class="error" role="alert">{_sentence(message)}</p>
<p>Nothing was charged. Please go back to the app that sent you here, and begin again.</p>"""
    told = {"origin": "*", "session": "", "step": "refused"}
    return _document("Checkout", panel, told, embedded=embedded)


def origin_of(url: str) -> str:
    """As browsers write it: without a path, and without the scheme's own port."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port not in (None, usual) else "")


def dollars(nano: int) -> str:
    """With cents, and more places only where there are some: 25000000000 -> "$25.00"."""
    text = format_nano(nano).rstrip("0")
    whole, _, part = text.partition(".")
    return f"${int(whole):,}.{part:0<2}"


def _document(
    title: str, panel: str, told: dict[str, str], *, embedded: bool, head: str = "", stripe: bool = False
) -> str:
    data = "".join(f' data-{name}="{escape(value)}"' for name, value in told.items())
    role = ' role="dialog" aria-modal="true" aria-labelledby="heading"' if embedded else ""
    scripts = '<script src="/checkout/static/page.js" defer></script>'
    if stripe:
        scripts += (
            '<script src="https://js.stripe.com/v3/"></script><script src="/checkout/static/stripe.js" defer></script>'
        )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/checkout/static/checkout.css">
{scripts}
</head>
<body class="{"embedded" if embedded else "hosted"}"{data}>
<main{role}>
{panel}
</main>
</body>
</html>
"""


def _close(embedded: bool) -> str:
    return '<button type="button" class="close" data-close aria-label="Close">×</button>' if embedded else ""


def _place(step: Step) -> str:
    number = next((number for number, steps in enumerate(_STEPS, 1) if step in steps), None)
    return f'<p class="place">Step {number} of {len(_STEPS)}</p>' if number is not None else ""


def _footer(shown: Shown) -> str:
    test = '<p class="test">Test mode: no money moves.</p>' if shown.progress.mode == "test" else ""
    back = ""
    if not shown.embedded and shown.step != "done":
        back = f'<p><a href="{escape(shown.progress.origin_url)}">Cancel and go back</a></p>'
    return f"<footer>{back}{test}</footer>" if back or test else ""


def _said_wrong(shown: Shown) -> str:
    """What the last form was refused for; else why the last charge was not made."""
    if shown.error is not None:
        return f'<p class="error" id="error" role="alert">{_sentence(shown.error.message)}</p>'
    charge = shown.progress.charge
    if shown.step in ("confirm", "card") and charge is not None and charge.status == "declined":
        return f'<p class="error" id="error" role="alert">{_sentence(declined_text(charge.decline_code))}</p>'
    return ""


def _sentence(message: str) -> str:
    return escape(message[:1].upper() + message[1:]) + "."


# What is sold


def _summary(shown: Shown) -> str:
    if shown.step in ("expired", "done") or shown.offer is None:
        return ""
    lines = "".join(f"<li>{line}</li>" for line in [*_lines(shown.offer), *_balance(shown)])
    return f'<section class="offer" aria-label="What you buy"><ul>{lines}</ul></section>'


def _lines(offer: Offer) -> list[str]:
    if offer.plan is not None:
        plan = offer.plan
        price = (
            "free" if not plan.period_amount_nano else f"{dollars(plan.period_amount_nano)} a {plan.billing_interval}"
        )
        lines = [f"<strong>{escape(plan.name)}</strong> <span>{price}</span>"]
        if plan.included_credit_nano:
            lines.append(f"{dollars(plan.included_credit_nano)} of credit each {plan.billing_interval}")
        if plan.charges_overage:
            lines.append("Usage beyond the credit is charged to your card")
        return lines
    if offer.bundle is not None:
        bundle = offer.bundle
        return [
            f"<strong>{escape(bundle.name)}</strong> <span>{dollars(bundle.cost_nano)}</span>",
            f"{dollars(bundle.credit_nano)} of credit, for {escape(bundle.plan)}",
        ]
    return ["<strong>Prepaid credit</strong>"]


def _balance(shown: Shown) -> list[str]:
    """Where credit is bought, and only to whom it belongs."""
    offer = shown.offer
    if not shown.progress.proven or offer is None or offer.plan is not None or offer.balance_nano is None:
        return []
    sign = "-" if offer.balance_nano < 0 else ""
    return [f"Your balance is {sign}{dollars(abs(offer.balance_nano))}"]


# The steps


def _phone(shown: Shown) -> str:
    progress = shown.progress
    if progress.phone_on_file and progress.phone is not None:
        text = f"<p>We send a code by text message to the number on file, {escape(masked(progress.phone))}.</p>"
        return text + form_of(shown, "send", buttons("Send the code"))
    number = field(
        "phone",
        "Mobile phone number",
        shown,
        hint="With the country code, such as +1 555 010 0000",
        kind="tel",
        autocomplete="tel",
    )
    return "<p>We send a code by text message, to know that it is you.</p>" + form_of(
        shown, "send", number + buttons("Send the code")
    )


def _code(shown: Shown) -> str:
    progress = shown.progress
    number = escape(masked(progress.phone)) if progress.phone is not None else ""
    hint = "Six digits. In test mode 000000 is right, too." if shown.sandbox else "Six digits"
    code = field("code", "Code", shown, hint=hint, autocomplete="one-time-code", numeric=True, longest=10)
    wait_s = progress.resend_after_s
    again = buttons(f"Send it again (in {wait_s} s)" if wait_s else "Send it again", quiet=True)
    other = "" if progress.phone_on_file else form_of(shown, "other_phone", buttons("Use another number", quiet=True))
    taken = form_of(shown, "code", code + buttons("Continue"))
    return f"<p>It was sent to {number}.</p>{taken}<div class='more'>{form_of(shown, 'send', again)}{other}</div>"


def _contact(shown: Shown) -> str:
    fields = (
        field("email", "Email", shown, kind="email", autocomplete="email", hint="For receipts")
        + field("first_name", "First name", shown, autocomplete="given-name")
        + field("last_name", "Last name", shown, autocomplete="family-name")
    )
    return form_of(shown, "contact", fields + buttons("Continue"))


def _card(shown: Shown) -> str:
    back = ""
    if shown.progress.card is not None:
        kept = f"Use the card ending in {escape(shown.progress.card.card.last4)}"
        back = f"<div class='more'>{form_of(shown, 'same_card', buttons(kept, quiet=True))}</div>"
    if shown.publishable_key:
        return _stripe(shown, "setup", "card_entered", "Save the card") + back
    hint = "Test card: 4242 4242 4242 4242, any expiry to come, any code" if shown.sandbox else ""
    fields = (
        field("number", "Card number", shown, hint=hint, autocomplete="cc-number", numeric=True, keep=False, longest=30)
        + '<div class="pair">'
        + field("expiry", "Expiry (MM/YY)", shown, autocomplete="cc-exp", numeric=True, longest=9)
        + field("cvc", "Security code", shown, autocomplete="cc-csc", numeric=True, keep=False, longest=4)
        + "</div>"
    )
    return form_of(shown, "card", fields + buttons("Save the card")) + back


def _card_approval(shown: Shown) -> str:
    back = form_of(shown, "other_card", buttons("Use another card", quiet=True))
    return _approval(shown, "approve_card", "add this card") + f"<div class='more'>{back}</div>"


def _confirm(shown: Shown) -> str:
    card, offer, quote = shown.progress.card, shown.offer, shown.quote
    assert card is not None and offer is not None and quote is not None
    shown_card = f"{escape(card.card.brand.title())} ending in {escape(card.card.last4)}"
    change = form_of(shown, "other_card", buttons("Use another card", quiet=True))
    if quote.change == "topup":
        presets = [(str(each), f"${each}") for each in _PRESETS]
        other = field("other_amount", "Other amount, in dollars", shown, numeric=True, required=False, decimal=True)
        choice = radios("amount", "How much?", [*presets, ("other", "Other")], shown.form.get("amount", "25")) + other
        said = f"<p>Your card, {shown_card}, is charged now.</p>"
        return form_of(shown, "confirm", choice + said + buttons("Pay")) + f"<div class='more'>{change}</div>"
    text, button = _agreed(offer, quote, shown_card)
    return form_of(shown, "confirm", f"<p>{text}</p>{buttons(button)}") + f"<div class='more'>{change}</div>"


def _agreed(offer: Offer, quote: Quote, card: str) -> tuple[str, str]:
    """What the customer agrees to, and the words on the button."""
    now = dollars(quote.amount_cents * NANO_A_CENT)
    plan, current = offer.plan, offer.current
    if plan is None:
        return f"Your card, {card}, is charged {now} now.", f"Pay {now}"
    beyond = " Usage beyond the credit is charged to it, too." if plan.charges_overage else ""
    if quote.change == "kept":
        return f"You are on {escape(plan.name)} already: it goes on, and nothing is charged now.", "Keep this plan"
    if quote.change == "downgrade" and current is not None:
        on = f"{current.cycle_end_at:%B %-d, %Y}"
        return f"You stay on {escape(current.name)} until {on}. Nothing is charged now.", "Change the plan"
    if not quote.amount_cents:
        return f"Nothing is charged now. Your card is {card}.{beyond}", "Subscribe"
    again = f"and {dollars(plan.period_amount_nano)} each {plan.billing_interval} until you cancel"
    left = f" It takes the place of {escape(current.name)} at once." if current is not None else ""
    return f"Your card, {card}, is charged {now} now, {again}.{beyond}{left}", f"Pay {now}"


def _paying(_: Shown) -> str:
    return '<p role="status">This takes a moment. The page goes on by itself; do not pay again.</p>'


def _payment_approval(shown: Shown) -> str:
    if shown.publishable_key:
        return _stripe(shown, "payment", "approve_payment", "Continue to your bank")
    cents = shown.progress.charge.amount_cents if shown.progress.charge is not None else 0
    return _approval(shown, "approve_payment", f"pay {dollars(cents * NANO_A_CENT)}")


def _approval(shown: Shown, act: str, what: str) -> str:
    """The sandbox's stand-in for the page of a bank (3-D Secure)."""
    chosen = (
        '<button name="approved" value="yes">Approve</button>'
        '<button class="quiet" name="approved" value="no">Refuse</button>'
    )
    return f"<p>This is the sandbox's bank. Do you want to {what}?</p>" + form_of(shown, act, chosen)


def _stripe(shown: Shown, what: str, act: str, button: str) -> str:
    """The fields are Stripe's, in iframes of its own. The form is sent when Stripe has them."""
    data = {"what": what, "key": shown.publishable_key, "secret": shown.client_secret}
    given = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())
    shell = f'<div id="stripe"{given}></div><p class="error" id="stripe-error" role="alert" hidden></p>'
    return form_of(shown, act, shell + buttons(button), name="stripe-form")


def _done(shown: Shown) -> str:
    progress = shown.progress
    lines = []
    if shown.offer is not None and shown.offer.plan is not None:
        lines.append(("Plan", escape(shown.offer.plan.name)))
    elif shown.offer is not None and shown.offer.bundle is not None:
        lines.append(("Bundle", escape(shown.offer.bundle.name)))
    charge = progress.charge
    paid = charge is not None and charge.status in ("succeeded", "refunded")
    lines.append(("Paid", dollars(charge.amount_cents * NANO_A_CENT) if charge is not None and paid else "$0.00"))
    if progress.proven and progress.card is not None and paid:
        lines.append(
            ("Card", f"{escape(progress.card.card.brand.title())} ending in {escape(progress.card.card.last4)}")
        )
    if charge is not None and paid:
        lines.append(("Receipt", escape(charge.charge_id)))
    told = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in lines)
    return f'<p role="status">It is done.</p><dl>{told}</dl>{_on(shown)}'


def _on(shown: Shown) -> str:
    host = escape(urlsplit(shown.progress.origin_url).netloc)
    if shown.embedded:
        said = f"<p>This goes back to {host} by itself in a few seconds.</p>"
        return said + '<button type="button" data-done>Continue</button>'
    parts = urlsplit(shown.progress.origin_url)
    query = "&".join(filter(None, (parts.query, urlencode({"checkout": "complete"}))))
    return f'<p><a class="button" href="{escape(urlunsplit(parts._replace(query=query)))}">Back to {host}</a></p>'


def _expired(_: Shown) -> str:
    return "<p>It was not completed in time, and nothing was charged. Please begin again from the app.</p>"


_BODIES: Final = {
    "phone": _phone,
    "code": _code,
    "contact": _contact,
    "card": _card,
    "card_approval": _card_approval,
    "confirm": _confirm,
    "paying": _paying,
    "payment_approval": _payment_approval,
    "done": _done,
    "expired": _expired,
}
