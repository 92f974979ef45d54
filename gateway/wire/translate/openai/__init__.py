"""OpenAI chat completions, read and written."""
