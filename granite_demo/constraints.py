"""What an answer has to be: JSON, JSON of a schema, a text that a pattern matches, or one of some texts.

Knows neither models nor requests. A ``Constraint`` is a checked value; ``compile_constraint`` makes of it the
``Matcher`` of one answer, which says before each token which tokens may come next. llguidance does the matching.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from granite_demo.errors import EngineError, InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer

Kind = Literal["json_object", "json_schema", "regex", "choice"]

COMPILE_SECONDS = 2.0
START_SECONDS, TOKEN_SECONDS = 0.5, 0.01  # of processor time for an answer's masks: at once, and with each token
MAX_SCHEMA_BYTES = 65_536
MAX_LEVELS = 200  # schemas in schemas, referred ones included: llguidance takes 8 kB of stack for each
MAX_COUNT, MAX_MULTIPLE_DIGITS = 100_000, 4
MAX_PATTERNS = 12  # different ones, and formats: work doubles with each that is laid over another
MAX_PATTERN, MAX_WRITTEN_OUT = 4_000, 50_000
MAX_CHOICES, MAX_CHOICE_BYTES = 1_000, 16_384

_COUNTS = {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
_MANY = {"properties", "patternProperties", "$defs", "definitions", "anyOf", "oneOf", "allOf", "prefixItems"}
_ONE = {"items", "additionalProperties"}
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_OTHERS = {"type", "const", "enum", "required", "pattern", "format", "$ref", "contentMediaType", "contentEncoding"}
_NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_KEYWORDS = _COUNTS | _MANY | _ONE | _BOUNDS | _OTHERS | _NOTES
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
# Spaces without an end are what small models fall into; these few are what they are used to write.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_ATOM = re.compile(r"\\[pPxuU]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<low>\d+)(?:,(?P<high>\d*))?\}|.", re.DOTALL)
# A tokenizer takes 0.2 s to a second to convert, and goes with its model. No state of an answer is kept here.
_converted: "WeakKeyDictionary[Any, dict[int, LLTokenizer]]" = WeakKeyDictionary()
_converting = threading.Lock()
# Compiling cannot be interrupted: slow constraints keep each other waiting, but nothing else.
_compiling = ThreadPoolExecutor(2, "constraints")


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer has to be. Checked on construction; raises InvalidRequestError.

    ``schema`` is JSON Schema of draft 2020-12 as JSON text; the properties are written in its order, with at most one
    space after a comma or colon. Refused is what cannot be kept to: not, if, contains, uniqueItems, propertyNames,
    dependent..., unevaluated..., $anchor, $dynamicRef and whatever else is not in the standard (but for x-...);
    minProperties beyond the required ones; references out of the schema; formats but those in ``_FORMATS``; oneOf
    whose branches may overlap; numbers beyond 64 bits; much of what lays a pattern or format over another or over a
    length. ``pattern`` is a regular expression in Rust's syntax that has to match the whole answer: no look-around,
    no backreferences, no word boundaries. Each of ``choices`` is an answer.
    """

    kind: Kind
    schema: str = ""
    pattern: str = ""
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "json_schema":
            object.__setattr__(self, "schema", _checked_schema(self.schema))
        elif self.kind == "regex":
            _check_pattern(self.pattern)
        elif self.kind == "choice":
            _check_choices(self.choices)
        elif self.kind != "json_object":
            raise InvalidRequestError(f"A constraint is json_object, json_schema, regex or choice, not {self.kind!r}.")

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any] | bool | str) -> "Constraint":
        """Of a schema as JSON text or as the value that it stands for."""
        return cls("json_schema", schema=schema)  # type: ignore[arg-type]  # it becomes text there


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


def compile_constraint(tokenizer: Any, constraint: Constraint, vocabulary: int, eos_ids: Collection[int]) -> Matcher:
    """The matcher of one answer, as a rule in milliseconds. Raises InvalidRequestError.

    ``vocabulary`` is the model's, which may be larger than the tokenizer's; the ``eos_ids``, one at least, are in it.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(prepare(tokenizer, eos_ids), _grammar(constraint), log_level=0, limits=limits)
    return Matcher(matcher, constraint.kind, vocabulary, eos_ids)


async def compile_in_time(
    tokenizer: Any, constraint: Constraint, vocabulary: int, eos_ids: Collection[int], seconds: float = COMPILE_SECONDS
) -> Matcher:
    """Like ``compile_constraint``, off the event loop, in at most ``seconds`` once the tokenizer is converted."""
    await asyncio.to_thread(prepare, tokenizer, eos_ids)
    loop = asyncio.get_running_loop()
    job = loop.run_in_executor(_compiling, compile_constraint, tokenizer, constraint, vocabulary, eos_ids)
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
        pattern = "|".join("".join(f"\\x{{{ord(letter):x}}}" for letter in choice) for choice in constraint.choices)
    try:
        if pattern:
            return LLMatcher.grammar_from_regex(pattern)
        return LLMatcher.grammar_from_json_schema(schema, overrides=_SPACING)  # type: ignore[arg-type]
    except ValueError as error:
        raise InvalidRequestError(f"The {constraint.kind} cannot be used: {_in_plain_words(str(error))}.") from error


def _in_plain_words(error: str) -> str:
    found = re.search(r"error: (.+)", error)
    reason = found[1] if found else error.splitlines()[0][:200].rstrip(".")
    if re.search(r"(?i)fuel|precompute|too many|too large|determine|limit|maximum number of nested", reason):
        return "it is too complex; simplify it"
    return "no text can satisfy it" if "NoExtension" in reason else reason


def _checked_schema(schema: Any) -> str:
    """The schema as compact JSON in the same order, without $schema and $id, which change nothing here."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, default=dict)
        if len(text.encode()) > MAX_SCHEMA_BYTES:
            raise InvalidRequestError(f"The schema is too large: at most {MAX_SCHEMA_BYTES:,} bytes are possible.")
        schema = {} if text.strip() == "true" else json.loads(text)
        if not isinstance(schema, dict):
            raise InvalidRequestError("A schema is a JSON object, or true for any JSON.")
        schema = {key: value for key, value in schema.items() if key not in ("$schema", "$id")}
        levels = _walk(schema, "#", found)
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The schema is not JSON, or it is nested too deeply ({error}).") from None
    schemas = [schema for _, schema in found.values()]
    references = {unquote(str(schema["$ref"])) for schema in schemas if "$ref" in schema}
    if missing := sorted(references - found.keys()):
        raise InvalidRequestError(f"The schema refers to {missing[0]!r}, which is no schema inside it.")
    patterns = {schema[name] for schema in schemas for name in ("pattern", "format") if name in schema}
    patterns |= {pattern for schema in schemas for pattern in schema.get("patternProperties", ())}
    levels += sum(found[place][0] for place in references)
    if levels > MAX_LEVELS or len(patterns) > MAX_PATTERNS:
        what = f"{levels} levels and {len(patterns)} different patterns and formats"
        raise InvalidRequestError(f"The schema has {what}; {MAX_LEVELS} and {MAX_PATTERNS} are possible.")
    return text


def _walk(schema: Any, place: str, found: dict[str, tuple[int, dict[str, Any]]]) -> int:
    """The levels of schemas from here down; each place with its levels and its schema is added to ``found``."""
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(f"The schema at {place} must be an object, true or false.")
    levels, keywords = 1, schema if isinstance(schema, dict) else {}
    for name, value in keywords.items():
        _check_keyword(keywords, name, value, place)
        parts = {name: value} if name in _ONE else {}
        if name in _MANY and isinstance(value, dict | list):
            named = value.items() if isinstance(value, dict) else enumerate(value)
            parts = {f"{name}/{str(key).replace('~', '~0').replace('/', '~1')}": part for key, part in named}
        levels = max([levels, *(1 + _walk(part, f"{place}/{path}", found) for path, part in parts.items())])
    found[place] = levels, keywords
    return levels


def _check_keyword(schema: dict[str, Any], name: str, value: Any, place: str) -> None:
    number = value if type(value) in (int, float) else 0
    long = len(Decimal(str(number)).normalize().as_tuple().digits) > MAX_MULTIPLE_DIGITS
    required = len(schema["required"]) if isinstance(schema.get("required"), list) else 0
    for wrong, words in (
        (name not in _KEYWORDS and (not name.startswith("x-") or name == "x-guidance"), "is not supported"),
        (name in _COUNTS and number > MAX_COUNT, f"may be {MAX_COUNT:,} at most; a higher bound can be left out"),
        (name == "minProperties" and number > max(1, required), "is not supported beyond the required properties"),
        (name == "multipleOf" and long, f"may have {MAX_MULTIPLE_DIGITS} digits at most"),
        (name == "format" and value not in _FORMATS, f"is none of {', '.join(_FORMATS)}"),
    ):
        if wrong:
            raise InvalidRequestError(f"{name} at {place} of the schema {words}.")
    for pattern in [value] if name == "pattern" else value if name == "patternProperties" else ():
        _check_pattern(pattern)


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str) or not 1 <= len(pattern) <= MAX_PATTERN:
        raise InvalidRequestError(f"A pattern is a text of 1 to {MAX_PATTERN:,} characters.")
    sums, last = [0], 0
    for match in _ATOM.finditer(pattern):
        if match["low"]:
            times = max(int(match["high"] or match["low"]), 1)
            sums[-1] += last * (times - 1)
            last *= times
        elif match[0] == "(":
            sums.append(0)
        elif match[0] not in "*+?|":
            last = sums.pop() if match[0] == ")" and len(sums) > 1 else 1
            sums[-1] += last
    if match[0] == "\\":
        raise InvalidRequestError("The pattern ends in a backslash that escapes nothing.")
    if sum(sums) > MAX_WRITTEN_OUT:
        raise InvalidRequestError(f"The pattern's repetitions are too many: {sum(sums):,} parts, written out.")


def _check_choices(choices: Any) -> None:
    texts = choices if isinstance(choices, tuple) and all(isinstance(text, str) for text in choices) else ()
    size = len("".join(texts).encode(errors="replace"))
    if not 1 <= len(texts) <= MAX_CHOICES or "" in texts or size > MAX_CHOICE_BYTES:
        raise InvalidRequestError(f"There may be 1 to {MAX_CHOICES:,} choices, {MAX_CHOICE_BYTES:,} bytes, none empty.")
