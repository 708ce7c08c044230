"""Fill in the middle: the prompt that asks for what stands between two texts. Knows no requests.

The order is prefix, suffix, middle, as in "Efficient Training of Language Models to Fill in the Middle"
(arXiv 2207.14255), and the tokens are those of the model's own tokenizer.
"""

from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.prompts.taint import Stretch
from granite_demo.prompts.tokenizer import encode_each, without_controls
from granite_demo.types.model_status import Feature

SPELLINGS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Granite 4
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # Granite 3
)
IN_A_TURN = SPELLINGS[0]
"""The instruct models with these tokens expect them inside a user's turn, says IBM's prompt guide of Granite 4.0."""
NO_TOKENS = "This model's tokenizer has no fill-in-the-middle tokens."
NOT_CLAIMED = "This model was not made to fill in the middle, though its tokenizer has tokens for it."
MADE_FOR_IT = ("granite-3.3", "granite-4.0")
"""The dialects of the models of which IBM says that they fill in the middle: 3.3, 4.0 and 4.1."""


def fim_problem(tokenizer: Any, dialect: str | None = None) -> str:
    """Why the model cannot fill in the middle; empty where it can. ``dialect``: of its ``ModelSpec``, if known."""
    if _tokens(tokenizer) is None:
        return NO_TOKENS
    return NOT_CLAIMED if dialect and dialect not in MADE_FOR_IT else ""


def cannot_fill(tokenizer: Any, dialect: str | None) -> tuple[tuple[Feature, str], ...]:
    """``fim_problem`` as a part of ``ModelStatus.unable``."""
    problem = fim_problem(tokenizer, dialect)
    return (("fill in the middle", problem),) if problem else ()


def in_a_turn(tokenizer: Any) -> bool:
    """Whether the prompt belongs into a user's turn of the model's chat template."""
    return bool(tokenizer.chat_template) and _tokens(tokenizer) == IN_A_TURN


def fim_stretches(tokenizer: Any, prefix: str, suffix: str) -> list[Stretch]:
    """The prompt in stretches to be encoded each by itself. Raises InvalidRequestError where the model has no tokens.

    What people write in ``prefix`` and ``suffix`` is never a control token.
    """
    tokens = _tokens(tokenizer)
    if tokens is None:
        raise InvalidRequestError(f"{NO_TOKENS} Choose a Granite 3.3, 4.0 or 4.1 model.")
    before, after, middle = (Stretch("template", token) for token in tokens)
    written, following = (
        [Stretch("user", piece) for piece in without_controls(tokenizer, text)] for text in (prefix, suffix)
    )
    return [before, *written, after, *following, middle]


def render_fim(tokenizer: Any, prefix: str, suffix: str) -> list[int]:
    """The token ids of the prompt. Raises InvalidRequestError where the model has no tokens for it."""
    texts = [stretch.text for stretch in fim_stretches(tokenizer, prefix, suffix)]
    return [token for ids in encode_each(tokenizer, texts) for token in ids]


def _tokens(tokenizer: Any) -> tuple[str, str, str] | None:
    known = getattr(tokenizer, "added_tokens_encoder", ())
    return next((names for names in SPELLINGS if all(name in known for name in names)), None)
