"""A tokenizer of single bytes with Granite's control tokens, made in a moment, to render chat templates with."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>", "<|im_start|>", "<|im_end|>"]
PLAIN_ADDED = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
"""Tokens that are added but not special, as in Granite 4."""
TEMPLATES = Path(__file__).parents[2] / "shared" / "templates"

THINKS = (
    "{%- for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content | trim }}"
    "{%- for call in message.tool_calls or [] %}"
    "<tool_call>\n<function={{ call.function.name }}>\n"
    "{%- for name, value in call.function.arguments.items() %}<parameter={{ name }}>{{ value }}</parameter>{% endfor %}"
    "</tool_call>"
    "{%- endfor %}"
    "{%- if loop.last and low_effort %} [effort: low]{% endif %}"
    "<|im_end|>\n"
    "{%- endfor %}"
    "<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>\n{% endif %}"
)
"""A template with the switches of Granite 4.2. Thinking is on by default."""


def byte_tokenizer(template: str | None = None) -> Any:
    """One token for each byte, and the control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(text, special=False) for text in PLAIN_ADDED])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    wrapped.chat_template = template
    return wrapped


def real_template(name: str) -> str:
    """A real Granite template; skips the test where it is not beside this repository."""
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip("the templates are not beside this repository")
    return path.read_text(encoding="utf-8")
