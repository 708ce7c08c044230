"""From generated text to its parts: reasoning, answer, tool calls, citations."""
