"""Parses generated text into reasoning, answer text, tool calls and citations, and constrains it."""
