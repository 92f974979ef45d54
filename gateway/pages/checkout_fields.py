"""Form fields of the checkout: each with a label, and with what is wrong beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Protocol

from gateway.errors import ObolError


class Sent(Protocol):
    """A form that was not taken, and why."""

    @property
    def form(self) -> dict[str, str]: ...

    @property
    def error(self) -> ObolError | None: ...

    @property
    def proof(self) -> str: ...


def form_of(sent: Sent, act: str, inside: str, *, name: str = "") -> str:
    """To the page's own address."""
    known = f' id="{name}"' if name else ""
    proof = f'<input type="hidden" name="proof" value="{escape(sent.proof)}">' if sent.proof else ""
    hidden = f'<input type="hidden" name="act" value="{act}">{proof}'
    return f'<form method="post"{known} novalidate>{hidden}{inside}</form>'


def field(
    name: str,
    label: str,
    sent: Sent,
    *,
    kind: str = "text",
    hint: str = "",
    autocomplete: str = "off",
    numeric: bool = False,
    decimal: bool = False,
    keep: bool = True,
    required: bool = True,
    longest: int = 100,
) -> str:
    """`keep`: what was typed is shown again. `longest`: in characters."""
    wrong = sent.error is not None and sent.error.param in (name, name.removeprefix("other_"))
    said = " ".join(filter(None, (f"{name}-hint" if hint else "", "error" if wrong else "")))
    attributes = [
        f'id="{name}" name="{name}" type="{kind}" autocomplete="{autocomplete}" maxlength="{longest}"',
        f'inputmode="{"decimal" if decimal else "numeric"}"' if numeric else "",
        "required" if required else "",
        'aria-invalid="true"' if wrong else "",
        f'aria-describedby="{said}"' if said else "",
        f'value="{escape(sent.form[name])}"' if keep and sent.form.get(name) else "",
    ]
    shown_hint = f'<small id="{name}-hint">{escape(hint)}</small>' if hint else ""
    return f'<p class="field"><label for="{name}">{escape(label)}</label><input {_joined(attributes)}>{shown_hint}</p>'


def radios(name: str, legend: str, choices: Sequence[tuple[str, str]], chosen: str) -> str:
    """`choices`: values and their words."""
    each = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if value == chosen else ""}>'
        f"<span>{escape(words)}</span></label>"
        for value, words in choices
    )
    return f'<fieldset><legend>{escape(legend)}</legend><div class="choices">{each}</div></fieldset>'


def buttons(words: str, *, quiet: bool = False) -> str:
    return f'<button class="quiet">{escape(words)}</button>' if quiet else f"<button>{escape(words)}</button>"


def _joined(attributes: list[str]) -> str:
    return " ".join(filter(None, attributes))
