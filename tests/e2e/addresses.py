"""The base URLs that a client may be given: what docs/clients.md tells, as values."""

from __future__ import annotations

from typing import NamedTuple


class Vendor(NamedTuple):
    """`base` is the base URL of the vendor's clients, `origin_path` what they would be given instead of it."""

    name: str
    base: str

    def query(self, gateway: str) -> str:
        """`/v1/forward?u=`, for clients that keep a base URL's query."""
        return f"{gateway}/v1/forward?u={self.base}"

    def path(self, gateway: str) -> str:
        """The target in the path, for every client."""
        return f"{gateway}/v1/forward/{self.base.replace('://', '/')}"


OPENAI = Vendor("openai", "https://api.openai.com/v1")
ANTHROPIC = Vendor("anthropic", "https://api.anthropic.com")
GOOGLE = Vendor("google", "https://generativelanguage.googleapis.com")
MISTRAL = Vendor("mistral", "https://api.mistral.ai")
COHERE = Vendor("cohere", "https://api.cohere.com")
GROQ = Vendor("groq", "https://api.groq.com")
