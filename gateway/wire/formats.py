"""Every wire format by name. Which path of which provider speaks which format is decided in `config/providers.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.wire.anthropic_messages import AnthropicMessages
from gateway.wire.audio import ELEVENLABS, OPENAI, Transcriptions
from gateway.wire.cohere import CohereChat, CohereEmbed
from gateway.wire.contract import Format
from gateway.wire.gemini import Gemini
from gateway.wire.images import Images
from gateway.wire.moderations import Moderations
from gateway.wire.openai_chat import OpenAIChat
from gateway.wire.openai_completions import FillInTheMiddle, OpenAICompletions
from gateway.wire.openai_embeddings import OpenAIEmbeddings
from gateway.wire.openai_responses import OpenAIResponses
from gateway.wire.plain import Http, Plain
from gateway.wire.rerank import Rerank
from gateway.wire.speech import Speech

_ALL: tuple[Format, ...] = (
    OpenAIChat(),
    OpenAICompletions(),
    FillInTheMiddle(),
    OpenAIResponses(),
    OpenAIEmbeddings(),
    AnthropicMessages("anthropic_messages"),
    AnthropicMessages("anthropic_count_tokens"),
    Gemini("gemini_generate"),
    Gemini("gemini_stream"),
    Gemini("gemini_embed"),
    Gemini("gemini_count_tokens"),
    CohereChat("cohere_v1_chat"),
    CohereChat("cohere_v2_chat"),
    CohereEmbed(),
    Rerank(),
    Images("images", "model"),
    Images("hyperbolic_images", "model_name"),
    Speech("audio_speech", OPENAI),
    Transcriptions("audio_transcriptions", OPENAI),
    Speech("elevenlabs_tts", ELEVENLABS),
    Transcriptions("elevenlabs_stt", ELEVENLABS),
    Moderations(),
    Plain(),
    Http(),
)

FORMATS: Mapping[str, Format] = MappingProxyType({format_.name: format_ for format_ in _ALL})
