"""What an answer has to be: JSON, JSON of a schema, a text that a pattern matches, or one of some texts.

Knows neither models nor requests. A ``Constraint`` is a checked value; ``compile_constraint`` makes of it the
``Matcher`` of one answer, which says before each token which tokens may come next. llguidance does the matching.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.outputs.dialects import Dialect
from granite_demo.types.constraints import Constraint, Kind

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer

Begun = tuple[str, tuple[int, ...]]
"""The beginning of an answer: a text, and the ids of tokens after it."""
NOTHING: Begun = ("", ())

COMPILE_SECONDS = 2.0
START_SECONDS, TOKEN_SECONDS = 0.5, 0.01  # of processor time for an answer's masks: at once, and with each token
# Spaces without an end are what small models fall into; these few are what they are used to write.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# A tokenizer takes 0.2 s to a second to convert, and goes with its model. No state of an answer is kept here.
_converted: "WeakKeyDictionary[Any, dict[int, LLTokenizer]]" = WeakKeyDictionary()
_converting = threading.Lock()
# Compiling cannot be interrupted: slow constraints keep each other waiting, but nothing else.
_compiling = ThreadPoolExecutor(2, "constraints")


class Matcher:
    """Where one answer stands. For one thread at a time. ``ended``: nothing but an end token may follow."""

    def __init__(self, matcher: "LLMatcher", kind: Kind, vocabulary: int, eos_ids: Collection[int]) -> None:
        self.ended = False
        self._matcher, self._kind, self._vocabulary = matcher, kind, vocabulary
        self._eos_ids = sorted(eos_ids)  # the first is the one that llguidance knows
        self._seconds = START_SECONDS
        self._check()
        self._mask: np.ndarray | None = None
        self.allowed()  # the first mask takes longest, and here it keeps no other answer waiting

    def allowed(self) -> "np.ndarray":
        """Which tokens may come next: bool, of the length of the vocabulary, not to be changed. At least one may.

        Raises InvalidRequestError where that takes too long or none of the model's tokens fits.
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
            may_end = bool(allowed[self._eos_ids[0]])
            allowed[self._eos_ids] = False
            self.ended = not allowed.any()
        if self.ended and not may_end:
            raise InvalidRequestError(f"The {self._kind} cannot be kept to: none of the model's tokens fits.")
        allowed[self._eos_ids] = may_end
        self._mask = allowed
        return allowed

    def accept(self, token_id: int) -> None:
        """Append a token to the answer. Raises EngineError for one that is not allowed, else like ``allowed``."""
        if not 0 <= token_id < self._vocabulary or not self.allowed()[token_id]:
            raise EngineError(f"Token {token_id} is not allowed by the {self._kind} of this answer.")
        self._mask = None
        if token_id in self._eos_ids:
            self.ended = True
            return
        start = time.thread_time()
        self._matcher.consume_token(token_id)
        self._check(time.thread_time() - start - TOKEN_SECONDS)
        self.ended = self._matcher.is_stopped()

    def go_on(self, token_ids: Sequence[int]) -> None:
        """Take what is written already. Raises InvalidRequestError where it does not fit, or is whole."""
        start = time.thread_time()
        taken = self._matcher.try_consume_tokens(list(token_ids))
        self._check(time.thread_time() - start - TOKEN_SECONDS * len(token_ids))
        if taken < len(token_ids):
            raise InvalidRequestError(
                f"What is written already is not the beginning of what the {self._kind} asks for. Accept or discard it "
                "first, or take the constraint off."
            )
        self.ended, self._mask = self._matcher.is_stopped(), None
        self.allowed()
        if self.ended:
            raise InvalidRequestError(f"What is written is all that the {self._kind} asks for: nothing may follow.")

    def _check(self, seconds: float = 0.0) -> None:
        # Thread time: an answer does not end because the machine is busy.
        self._seconds = min(self._seconds - seconds, START_SECONDS)
        if error := self._matcher.get_error():
            raise InvalidRequestError(f"The {self._kind} cannot be used: {_in_plain_words(error)}.")
        if self._seconds < 0:
            raise InvalidRequestError(f"The {self._kind} takes too long to keep to. Simplify it.")


def prepare(tokenizer: Any, eos_ids: Collection[int]) -> "LLTokenizer":
    """Convert a fast Hugging Face tokenizer, once: up to a second, in which no other thread runs.

    Raises InvalidRequestError for one that cannot be converted."""
    from llguidance.hf import from_tokenizer

    end = min(eos_ids)
    with _converting:
        of_ends = _converted.setdefault(tokenizer, {})
        if end not in of_ends:
            try:
                of_ends[end] = from_tokenizer(tokenizer, eos_token=end)
            except ValueError as error:
                raise InvalidRequestError(f"This model's tokenizer allows no constraints: {error}.") from error
        return of_ends[end]


def compile_constraint(
    tokenizer: Any,
    constraint: Constraint,
    vocabulary: int,
    eos_ids: Collection[int],
    begun: Begun = NOTHING,
    thinking: Dialect | None = None,
) -> Matcher:
    """The matcher of one answer, as a rule in milliseconds. Raises InvalidRequestError.

    ``vocabulary`` is the model's, which may be larger than the tokenizer's; the ``eos_ids``, one at least, are in it.
    ``begun`` is what is written of the answer already. Where the prompt has opened the thinking, ``thinking`` tells how
    that is closed: it may be any text, with no call of a tool in it, and the constraint begins behind it.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    converted = prepare(tokenizer, eos_ids)
    grammar = _grammar(constraint)
    if thinking is not None:
        grammar = _after_thinking(grammar, thinking, tokenizer.get_added_vocab())
    inner = LLMatcher(converted, grammar, log_level=0, limits=limits)
    matcher = Matcher(inner, constraint.kind, vocabulary, eos_ids)
    text, token_ids = begun
    if text or token_ids:
        matcher.go_on([*converted.tokenize_bytes(text.encode()), *token_ids])
    return matcher


async def compile_in_time(
    tokenizer: Any,
    constraint: Constraint,
    vocabulary: int,
    eos_ids: Collection[int],
    seconds: float = COMPILE_SECONDS,
    begun: Begun = NOTHING,
    thinking: Dialect | None = None,
) -> Matcher:
    """Like ``compile_constraint``, off the event loop, in at most ``seconds`` once the tokenizer is converted."""
    await asyncio.to_thread(prepare, tokenizer, eos_ids)
    loop = asyncio.get_running_loop()
    given = (tokenizer, constraint, vocabulary, eos_ids, begun, thinking)
    job = loop.run_in_executor(_compiling, compile_constraint, *given)
    try:
        return await asyncio.wait_for(job, seconds)
    except TimeoutError:
        raise InvalidRequestError(
            f"The {constraint.kind} took over {seconds:g} seconds to prepare. Simplify it."
        ) from None


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    pattern, schema = constraint.pattern, constraint.schema or '{"type":"object"}'
    if constraint.kind == "choice":
        pattern = _one_of(constraint.choices)
    try:
        if pattern:
            return LLMatcher.grammar_from_regex(pattern)
        return LLMatcher.grammar_from_json_schema(schema, overrides=_SPACING)  # type: ignore[arg-type]
    except ValueError as error:
        raise InvalidRequestError(f"The {constraint.kind} cannot be used: {_in_plain_words(str(error))}.") from error


def _one_of(texts: Collection[str]) -> str:
    return "|".join("".join(f"\\x{{{ord(letter):x}}}" for letter in text) for text in texts)


def _after_thinking(grammar: str, dialect: Dialect, added: Mapping[str, int]) -> str:
    """``grammar`` behind thinking; ``added`` are the tokenizer's tokens that no text is cut into."""
    ends = [str(added[marker]) for marker in dialect.think_close if marker in added]
    close = "" if ends else f"({_one_of(dialect.think_close)})"
    # Not spelled otherwise where a token of its own closes it: who reads the answer would take it for the end.
    barred = (*dialect.tool_open, *(dialect.think_close if ends else ()))
    without = f" & ~/(?s:.*)({_one_of(barred)})(?s:.*)/" if barred else ""
    lark = (
        "start: thinking SPACE @answer\n"
        + (f"thinking: TEXT <[{','.join(ends)}]>\n" if ends else "thinking[lazy]: TEXT\n")
        + f"TEXT: /(?s:.*){close}/{without}\n"
        + "SPACE: /[ \\n]{0,2}/"
    )
    answer = {**json.loads(grammar)["grammars"][0], "name": "answer"}
    return json.dumps({"grammars": [{"lark_grammar": lark}, answer]})


def _in_plain_words(error: str) -> str:
    found = re.search(r"error: (.+)", error)
    reason = found[1] if found else error.splitlines()[0][:200].rstrip(".")
    if re.search(r"(?i)fuel|precompute|too many|too large|determine|limit|maximum number of nested", reason):
        return "it is too complex; simplify it"
    return "no text can satisfy it" if "NoExtension" in reason else reason
