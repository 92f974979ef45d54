"""What the vendors' own packages take as their base URL. The key to give them is a forward token or a spend key."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class BaseUrls:
    """`root` is the gateway's address without a path: `http://127.0.0.1:8080`."""

    root: str

    @property
    def openai(self) -> str:
        """Of `openai.OpenAI(base_url=...)` and of what is built on it."""
        return f"{self.root}/v1"

    @property
    def anthropic(self) -> str:
        """Of `anthropic.Anthropic(base_url=...)`."""
        return self.root

    @property
    def google(self) -> str:
        """Of `google.genai.Client(http_options={"base_url": ...})`."""
        return self.root

    def forward(self, provider_url: str) -> str:
        """`provider_url`, a whole URL or a base URL, through the gateway. The gateway finds it in the query."""
        return f"{self.root}/v1/forward?u={provider_url}"

    def forward_path(self, provider_url: str) -> str:
        """The same in the path, for clients that drop the query of a base URL."""
        return f"{self.root}/v1/forward/{provider_url.replace('://', '/', 1)}"

    def rewrite(self, dialect: str, provider_url: str) -> str:
        """The chat URL of a provider, spoken to in another dialect: `openai`, `anthropic` or `google`."""
        return f"{self.root}/v1/rewrite/{quote(dialect, safe='')}/{provider_url}"


def root_of(base_url: str) -> str:
    """`http://host:8080`, `http://host:8080/` and `http://host:8080/v1/` name the same gateway."""
    if not base_url.startswith(("http://", "https://")) or "?" in base_url or "#" in base_url:
        raise ValueError(f"base_url: {base_url!r} is not an http or https URL without query")
    return base_url.rstrip("/").removesuffix("/v1")
