"""Constrains an answer to JSON, to a JSON schema, to a regular expression or to a list of choices.

``compile_constraint`` turns a ``Constraint``, which is already validated, into the ``Matcher`` of one answer. Before
each token, the matcher gives the mask of the tokens that are allowed next. llguidance computes the masks.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.outputs.dialects import Dialect
from granite_demo.types.constraints import Constraint, ConstraintKind

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer

Begun = tuple[str, tuple[int, ...]]
"""The start of an answer that is already written: a text, then token ids."""
NOT_BEGUN: Begun = ("", ())

COMPILE_SECONDS = 2.0
# The budget of CPU time for the masks of one answer: at the start and at most, and what each token adds.
START_SECONDS, TOKEN_SECONDS = 0.5, 0.01
# Small models can write white space without end. One space at most is what they usually write.
_SPACING = {"whitespace_flexible": False, "whitespace_pattern": " ?"}
# llama.cpp's version of llguidance matches that pattern several times in a row. This is one of the ways that it allows.
_SPACING_OF_LLAMA = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Converted tokenizers by end token. A conversion takes 0.2 s to 1 s. An entry goes when its tokenizer goes.
_converted: "WeakKeyDictionary[Any, dict[int, LLTokenizer]]" = WeakKeyDictionary()
_converting = threading.Lock()
# A compilation cannot be interrupted. With threads of their own, slow constraints delay only each other.
_compiling = ThreadPoolExecutor(2, "constraints")


class Matcher:
    """The state of one constrained answer. Not thread-safe. ``ended``: only an end token can follow."""

    def __init__(
        self, matcher: "LLMatcher", kind: ConstraintKind, vocabulary: int, eos_ids: Collection[int], lark: str
    ) -> None:
        self.lark: str | None = lark
        """The constraint in llguidance's Lark syntax, for an engine that has its own matcher.

        None where a part of the answer is already written: there is no such text of the rest.
        """
        self.ended = False
        self._matcher, self._kind, self._vocabulary = matcher, kind, vocabulary
        self.eos_ids = sorted(eos_ids)  # llguidance knows the first one
        self._seconds = START_SECONDS
        self._check()
        self._mask: np.ndarray | None = None
        self.allowed()  # the first mask is the slowest one, and here it delays no other answer

    def allowed(self) -> "np.ndarray":
        """Return the mask of the tokens that can come next: bool, shape (vocabulary,), read-only. At least one is set.

        Raises InvalidRequestError if the CPU time is used up, or if no token of the model is allowed.
        """
        import numpy as np

        if self._mask is not None:
            return self._mask
        allowed = np.zeros(self._vocabulary, dtype=bool)
        may_end = True
        if not self.ended:
            start = time.thread_time()
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._check(time.thread_time() - start)
            bits = np.unpackbits(packed, bitorder="little")[: self._vocabulary]
            allowed[: len(bits)] = bits
            may_end = bool(allowed[self.eos_ids[0]])
            allowed[self.eos_ids] = False
            self.ended = not allowed.any()
        if self.ended and not may_end:
            raise InvalidRequestError(f"The {self._kind} cannot be satisfied: no token of the model is allowed here.")
        allowed[self.eos_ids] = may_end
        self._mask = allowed
        return allowed

    def accept(self, token_id: int) -> None:
        """Append a token to the answer. Raises EngineError if it is not allowed; otherwise raises as ``allowed``."""
        if not 0 <= token_id < self._vocabulary or not self.allowed()[token_id]:
            raise EngineError(f"Token {token_id} is not allowed by the {self._kind} of this answer.")
        self._mask = None
        if token_id in self.eos_ids:
            self.ended = True
            return
        start = time.thread_time()
        self._matcher.consume_token(token_id)
        self._check(time.thread_time() - start - TOKEN_SECONDS)
        self.ended = self._matcher.is_stopped()

    def follow(self, token_id: int) -> None:
        """Append a token that another matcher of the same constraint chose. Raises EngineError if it does not fit."""
        if token_id in self.eos_ids:
            if not self._matcher.is_accepting():
                raise EngineError(f"The answer ended before it matched the {self._kind}.")
        elif not self._matcher.try_consume_tokens([token_id]):
            raise EngineError(f"Token {token_id} is not allowed by the {self._kind} of this answer.")
        self.ended, self._mask = token_id in self.eos_ids or self._matcher.is_stopped(), None

    def next_lark(self) -> str:
        """Return, in llguidance's Lark syntax, the tokens that can come next. Raises as ``allowed``."""
        import numpy as np

        allowed = self.allowed().copy()
        may_end = allowed[self.eos_ids[0]]
        allowed[self.eos_ids] = False
        starts_and_ends = np.flatnonzero(np.diff(allowed.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        if not len(starts_and_ends):
            return 'start: ""'
        ranges = ",".join(f"{start}-{end - 1}" for start, end in starts_and_ends.tolist())
        return f"start: <[{ranges}]>{'?' if may_end else ''}"

    def accept_prefix(self, token_ids: Sequence[int]) -> None:
        """Append text that is already written. Raises InvalidRequestError if it does not match or is complete."""
        start = time.thread_time()
        taken = self._matcher.try_consume_tokens(list(token_ids))
        self._check(time.thread_time() - start - TOKEN_SECONDS * len(token_ids))
        if taken < len(token_ids):
            raise InvalidRequestError(
                f"The text does not start as the {self._kind} requires. Accept or discard it first, or remove the "
                "constraint."
            )
        self.lark, self.ended, self._mask = None, self._matcher.is_stopped(), None
        self.allowed()
        if self.ended:
            raise InvalidRequestError(f"The text already matches the {self._kind}; nothing can be generated.")

    def _check(self, seconds: float = 0.0) -> None:
        # The time of this thread only, so that a busy machine does not end an answer.
        self._seconds = min(self._seconds - seconds, START_SECONDS)
        if error := self._matcher.get_error():
            raise InvalidRequestError(f"The {self._kind} cannot be used: {_in_plain_words(error)}.")
        if self._seconds < 0:
            raise InvalidRequestError(f"The {self._kind} needs too much computing time. Simplify it.")


def prepare(tokenizer: Any, eos_ids: Collection[int]) -> "LLTokenizer":
    """Convert a fast Hugging Face tokenizer for llguidance and cache the result.

    The conversion takes up to 1 s and blocks all other threads. Raises InvalidRequestError if it is not possible.
    """
    from llguidance import LLTokenizer

    if not eos_ids:
        raise InvalidRequestError("This model has no token that ends an answer, so it does not support constraints.")
    end = min(eos_ids)
    with _converting:
        of_ends = _converted.setdefault(tokenizer, {})
        if end not in of_ends:
            try:
                # The same as llguidance.hf does, which imports transformers.
                backend = copy(tokenizer.backend_tokenizer)
                backend.no_padding()
                backend.no_truncation()
                of_ends[end] = LLTokenizer(backend.to_str(), eos_token=end)
            except (AttributeError, ValueError) as error:
                raise InvalidRequestError(f"This model's tokenizer does not support constraints: {error}.") from error
        return of_ends[end]


def compile_constraint(
    tokenizer: Any,
    constraint: Constraint,
    vocabulary: int,
    eos_ids: Collection[int],
    begun: Begun = NOT_BEGUN,
    reasoning: Dialect | None = None,
) -> Matcher:
    """Return the matcher of one answer. This usually takes milliseconds. Raises InvalidRequestError.

    ``vocabulary`` is the number of logits of the model, which can exceed the vocabulary of the tokenizer. There must be
    at least one of ``eos_ids``, each below ``vocabulary``. ``begun`` is the part of the answer that is already written.
    If the prompt opens the reasoning, give the dialect as ``reasoning``: the reasoning can then be any text without a
    tool call, and the constraint applies after it.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    converted = prepare(tokenizer, eos_ids)
    own, for_llama = (
        lark_grammar(constraint, spacing, reasoning, tokenizer.get_added_vocab())
        for spacing in (_SPACING, _SPACING_OF_LLAMA)
    )
    try:
        inner = LLMatcher(converted, LLMatcher.grammar_from_lark(own), log_level=0, limits=limits)
    except ValueError as error:
        raise InvalidRequestError(f"The {constraint.kind} cannot be used: {_in_plain_words(str(error))}.") from error
    matcher = Matcher(inner, constraint.kind, vocabulary, eos_ids, for_llama)
    text, token_ids = begun
    if text or token_ids:
        matcher.accept_prefix([*converted.tokenize_bytes(text.encode()), *token_ids])
    return matcher


async def compile_in_time(
    tokenizer: Any,
    constraint: Constraint,
    vocabulary: int,
    eos_ids: Collection[int],
    seconds: float = COMPILE_SECONDS,
    begun: Begun = NOT_BEGUN,
    reasoning: Dialect | None = None,
) -> Matcher:
    """Run ``compile_constraint`` outside the event loop, for at most ``seconds`` after the tokenizer is converted.

    Raises InvalidRequestError.
    """
    await asyncio.to_thread(prepare, tokenizer, eos_ids)
    loop = asyncio.get_running_loop()
    given = (tokenizer, constraint, vocabulary, eos_ids, begun, reasoning)
    job = loop.run_in_executor(_compiling, compile_constraint, *given)
    try:
        return await asyncio.wait_for(job, seconds)
    except TimeoutError:
        raise InvalidRequestError(
            f"The {constraint.kind} took over {seconds:g} seconds to prepare. Simplify it."
        ) from None


def lark_grammar(
    constraint: Constraint,
    spacing: Mapping[str, Any],
    reasoning: Dialect | None = None,
    added: Mapping[str, int] | None = None,
) -> str:
    """Return the constraint in llguidance's Lark syntax, which llama.cpp reads as well. Raises InvalidRequestError.

    ``spacing`` has llguidance's options for white space in JSON. ``reasoning`` is as in ``compile_constraint``.
    ``added`` maps the added tokens of the tokenizer to their ids.
    Source of the syntax: llguidance, docs/syntax.md.
    """
    start = "start" if reasoning is None else "answer"
    if constraint.kind == "choice":
        rule = f"{start}: /{_one_of(constraint.choices)}/"
    elif constraint.pattern:
        rule = f"{start}: /{_escaped_slashes(constraint.pattern)}/"
    else:
        schema = json.loads(constraint.schema or '{"type":"object"}')
        if schema is False:
            raise InvalidRequestError(f"The {constraint.kind} cannot be used: no text can satisfy it.")
        schema = {} if schema is True else schema
        rule = f"{start}: %json {json.dumps({**schema, 'x-guidance': spacing})}"
    return rule if reasoning is None else f"{_reasoning_rules(reasoning, added or {})}\n{rule}"


def _escaped_slashes(pattern: str) -> str:
    """Escape what would end a regular expression of Lark: slashes and line breaks."""
    pattern = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL)
    return pattern.replace("\n", r"\n").replace("\r", r"\r")


def _one_of(texts: Collection[str]) -> str:
    return "|".join("".join(f"\\x{{{ord(letter):x}}}" for letter in text) for text in texts)


def _reasoning_rules(dialect: Dialect, added: Mapping[str, int]) -> str:
    """Return the rules of an answer that starts with reasoning."""
    closing = dialect.of("reasoning_close")
    ends = [str(added[marker]) for marker in closing if marker in added]
    close = "" if ends else f"({_one_of(closing)})"
    # If a token closes the reasoning, the same text in other tokens is barred: the parser would take it for the end.
    barred = (*dialect.of("call_open"), *(closing if ends else ()))
    without = f" & ~/(?s:.*)({_one_of(barred)})(?s:.*)/" if barred else ""
    return (
        "start: reasoning SPACE answer\n"
        + (f"reasoning: TEXT <[{','.join(ends)}]>\n" if ends else "reasoning[lazy]: TEXT\n")
        + f"TEXT: /(?s:.*){close}/{without}\n"
        + "SPACE: /[ \\n]{0,2}/"
    )


def _in_plain_words(error: str) -> str:
    found = re.search(r"error: (.+)", error)
    reason = found[1] if found else error.splitlines()[0][:200].rstrip(".")
    if re.search(r"(?i)fuel|precompute|too many|too large|determine|limit|maximum number of nested", reason):
        return "it is too complex; simplify it"
    return "no text can satisfy it" if "NoExtension" in reason else reason
