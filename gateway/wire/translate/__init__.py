"""Chat calls between three dialects: OpenAI chat completions, Anthropic messages, Gemini generateContent. PURE.

One model between them (`model.py`), and for each dialect a reader and a writer of requests and of answers, whole and
streamed: three and three, not six pairs. `translation.py` puts them together.
What a request asks for and the other dialect cannot say is refused by its field's name (`fields.py`);
docs/translation.md lists what is left out instead.
"""
