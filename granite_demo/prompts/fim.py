"""Prompts for fill in the middle (FIM): the model writes the text between a prefix and a suffix.

The order is prefix, suffix, middle (PSM), as in "Efficient Training of Language Models to Fill in the Middle" (arXiv
2207.14255). The control tokens are those of the model's tokenizer.
"""

from granite_demo.errors import InvalidRequestError
from granite_demo.prompts.taint import Span
from granite_demo.prompts.tokenizer import Tokenizer, split_control_tokens
from granite_demo.types.model_status import Feature

SPELLINGS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Granite 4
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # Granite 3
)
IN_A_TURN = SPELLINGS[0]
"""Instruct models with these tokens expect them inside a user turn (IBM's prompt guide for Granite 4.0)."""
NO_TOKENS = "This model's tokenizer has no fill-in-the-middle tokens."
NOT_SUPPORTED = "This model does not support fill in the middle, although its tokenizer has the tokens for it."
SUPPORTED = ("granite-3.3", "granite-4.0")
"""The dialects of the models that support FIM according to IBM: 3.3, 4.0 and 4.1."""


def fim_problem(tokenizer: Tokenizer, chat_format: str | None = None) -> str:
    """Return why the model cannot fill in the middle, or "" if it can. ``chat_format`` is that of its ``ModelSpec``."""
    if _tokens(tokenizer) is None:
        return NO_TOKENS
    return NOT_SUPPORTED if chat_format and chat_format not in SUPPORTED else ""


def cannot_fill(tokenizer: Tokenizer, chat_format: str | None) -> tuple[tuple[Feature, str], ...]:
    """Return the result of ``fim_problem`` as an entry of ``ModelStatus.unable``, or nothing."""
    problem = fim_problem(tokenizer, chat_format)
    return (("fill in the middle", problem),) if problem else ()


def in_a_turn(tokenizer: Tokenizer) -> bool:
    """Whether the prompt must be inside a user turn of the model's chat template."""
    return bool(tokenizer.chat_template) and _tokens(tokenizer) == IN_A_TURN


def fim_spans(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[Span]:
    """Return the spans of the prompt, which must be encoded separately.

    Text in ``prefix`` and ``suffix`` never becomes a control token. Raises InvalidRequestError if the tokenizer has no
    FIM tokens.
    """
    tokens = _tokens(tokenizer)
    if tokens is None:
        raise InvalidRequestError(f"{NO_TOKENS} Choose a Granite 3.3, 4.0 or 4.1 model.")
    before, after, middle = (Span("template", token) for token in tokens)
    written, following = (
        [Span("user", piece) for piece in split_control_tokens(tokenizer, text)] for text in (prefix, suffix)
    )
    return [before, *written, after, *following, middle]


def _tokens(tokenizer: Tokenizer) -> tuple[str, str, str] | None:
    known = getattr(tokenizer, "added_tokens_encoder", ())
    return next((names for names in SPELLINGS if all(name in known for name in names)), None)
