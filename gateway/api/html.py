"""The frame of the pages that the API serves: one file each, without scripts, its style inside."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


def framed(title: str, body: str) -> str:
    """A whole page. `body` is HTML, `title` text."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def headers(form_action: str = "'none'") -> dict[str, str]:
    """Nothing but the page's own style may load; forms go to `form_action` only; no page may embed it."""
    policy = (
        "default-src 'none'",
        f"style-src 'sha256-{_STYLE_HASH}'",
        "img-src data:",
        "base-uri 'none'",
        f"form-action {form_action}",
        "frame-ancestors 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
