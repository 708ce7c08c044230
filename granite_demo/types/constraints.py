"""The constraint of an answer, and the checks that reject unsupported or expensive constraints before compilation."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import unquote

from granite_demo.errors import InvalidRequestError

MAX_SCHEMA_BYTES = 65_536
MAX_LEVELS = 200  # nested schemas, including references: llguidance needs 8 kB of stack for each
MAX_COUNT, MAX_MULTIPLE_DIGITS = 100_000, 4
MAX_COMMON_MULTIPLE = 50_000  # of all values of multipleOf: llguidance divides digit by digit; 10^6 takes minutes
MAX_PATTERNS = 12  # different patterns and formats: the work doubles with each that overlaps another
MAX_PATTERN, MAX_WRITTEN_OUT = 4_000, 50_000
MAX_CHOICES, MAX_CHOICE_BYTES = 1_000, 16_384

_COUNTS = {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
MANY = {"properties", "patternProperties", "$defs", "definitions", "anyOf", "oneOf", "allOf", "prefixItems"}
ONE = {"items", "additionalProperties"}
"""Keywords whose value is a list or a mapping of schemas, and keywords whose value is one schema."""
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_OTHERS = {"type", "const", "enum", "required", "pattern", "format", "$ref", "contentMediaType", "contentEncoding"}
_NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_KEYWORDS = _COUNTS | MANY | ONE | _BOUNDS | _OTHERS | _NOTES
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_ATOM = re.compile(r"\\[pPxuU]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<low>\d+)(?:,(?P<high>\d*))?\}|.", re.DOTALL)


def checked_schema(schema: Any) -> str:
    """Return the schema as compact JSON in the same order, without $schema and $id. Raises InvalidRequestError."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, default=dict)
        if len(text.encode()) > MAX_SCHEMA_BYTES:
            raise InvalidRequestError(f"The schema is too large: the limit is {MAX_SCHEMA_BYTES:,} bytes.")
        schema = {} if text.strip() == "true" else json.loads(text)
        if not isinstance(schema, dict):
            raise InvalidRequestError("A schema must be a JSON object, or true for any JSON.")
        schema = {key: value for key, value in schema.items() if key not in ("$schema", "$id")}
        levels = _walk(schema, "#", found)
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The schema is not JSON, or it is nested too deeply ({error}).") from None
    schemas = [schema for _, schema in found.values()]
    references = {unquote(str(schema["$ref"])) for schema in schemas if "$ref" in schema}
    if missing := sorted(references - found.keys()):
        raise InvalidRequestError(f"The schema has a reference to {missing[0]!r}, which it does not contain.")
    patterns = {schema[name] for schema in schemas for name in ("pattern", "format") if name in schema}
    patterns |= {pattern for schema in schemas for pattern in schema.get("patternProperties", ())}
    if math.lcm(*(_digits(schema["multipleOf"]) for schema in schemas if "multipleOf" in schema)) > MAX_COMMON_MULTIPLE:
        raise InvalidRequestError("The values of multipleOf in the schema are too different. Remove some of them.")
    levels += sum(found[place][0] for place in references)
    if levels > MAX_LEVELS or len(patterns) > MAX_PATTERNS:
        what = f"{levels} levels and {len(patterns)} different patterns and formats"
        raise InvalidRequestError(f"The schema has {what}; the limits are {MAX_LEVELS} and {MAX_PATTERNS}.")
    return text


def _walk(schema: Any, place: str, found: dict[str, tuple[int, dict[str, Any]]]) -> int:
    """Return the levels of nested schemas below ``place``. Add each place, with its levels and schema, to ``found``."""
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(f"The schema at {place} must be an object, true or false.")
    levels, keywords = 1, schema if isinstance(schema, dict) else {}
    for name, value in keywords.items():
        _check_keyword(keywords, name, value, place)
        parts = {name: value} if name in ONE else {}
        if name in MANY and isinstance(value, dict | list):
            named = value.items() if isinstance(value, dict) else enumerate(value)
            parts = {f"{name}/{str(key).replace('~', '~0').replace('/', '~1')}": part for key, part in named}
        levels = max([levels, *(1 + _walk(part, f"{place}/{path}", found) for path, part in parts.items())])
    found[place] = levels, keywords
    return levels


def _digits(value: Any) -> int:
    """Return the significant digits of a number as an integer, or 1 if ``value`` is not a number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        return 1
    return int("".join(map(str, Decimal(str(value)).normalize().as_tuple().digits))) or 1


def _check_keyword(schema: dict[str, Any], name: str, value: Any, place: str) -> None:
    number = value if type(value) in (int, float) else 0
    long = _digits(value) >= 10**MAX_MULTIPLE_DIGITS
    required = len(schema["required"]) if isinstance(schema.get("required"), list) else 0
    for wrong, words in (
        (name not in _KEYWORDS and (not name.startswith("x-") or name == "x-guidance"), "is not supported"),
        (name in _COUNTS and number > MAX_COUNT, f"must be at most {MAX_COUNT:,}; remove a higher bound"),
        (name == "minProperties" and number > max(1, required), "is not supported beyond the required properties"),
        (name == "multipleOf" and long, f"must have at most {MAX_MULTIPLE_DIGITS} digits"),
        (name == "format" and value not in FORMATS, f"must be one of {', '.join(FORMATS)}"),
    ):
        if wrong:
            raise InvalidRequestError(f"{name} at {place} of the schema {words}.")
    for pattern in [value] if name == "pattern" else value if name == "patternProperties" else ():
        check_pattern(pattern)


def check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str) or not 1 <= len(pattern) <= MAX_PATTERN:
        raise InvalidRequestError(f"A pattern must be a text of 1 to {MAX_PATTERN:,} characters.")
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
        raise InvalidRequestError("The pattern ends with a backslash, which must escape a character.")
    if sum(sums) > MAX_WRITTEN_OUT:
        raise InvalidRequestError(f"The pattern has too many repetitions: {sum(sums):,} parts if they are expanded.")


def check_choices(choices: Any) -> None:
    texts = choices if isinstance(choices, tuple) and all(isinstance(text, str) for text in choices) else ()
    size = len("".join(texts).encode(errors="replace"))
    if not 1 <= len(texts) <= MAX_CHOICES or "" in texts or size > MAX_CHOICE_BYTES:
        raise InvalidRequestError(
            f"A constraint must have 1 to {MAX_CHOICES:,} choices with at most {MAX_CHOICE_BYTES:,} bytes, none empty."
        )


ConstraintKind = Literal["json_object", "json_schema", "regex", "choice"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """The format that an answer must have. It is checked on construction, which raises InvalidRequestError.

    ``schema`` is the text of a JSON Schema of draft 2020-12. The properties are generated in its order, with at most
    one space after a comma or colon. These features cannot be enforced, so they are rejected: not, if, contains,
    uniqueItems, propertyNames, dependent..., unevaluated..., $anchor, $dynamicRef and keywords that are not in the
    standard, except x-...; minProperties above the number of required properties; references out of the schema; formats
    that are not in ``FORMATS``; oneOf with branches that can overlap; numbers above 64 bits; most combinations of a
    pattern or format with another one or with a length. ``pattern`` is a regular expression in the syntax of Rust that
    must match the complete answer, without look-around, backreferences and word boundaries. The answer is one of
    ``choices``.
    """

    kind: ConstraintKind
    schema: str = ""
    pattern: str = ""
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "json_schema":
            object.__setattr__(self, "schema", checked_schema(self.schema))
        elif self.kind == "regex":
            check_pattern(self.pattern)
        elif self.kind == "choice":
            check_choices(self.choices)
        elif self.kind != "json_object":
            raise InvalidRequestError(
                f"A constraint must be json_object, json_schema, regex or choice, not {self.kind!r}."
            )

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any] | bool | str) -> "Constraint":
        """Return the constraint for a schema, which is JSON text or the parsed value."""
        return cls("json_schema", schema=schema)  # type: ignore[arg-type]  # converted to text on construction
