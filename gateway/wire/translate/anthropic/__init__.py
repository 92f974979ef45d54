"""Anthropic messages, read and written."""
