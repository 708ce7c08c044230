"""What is refused as a constraint before anything is compiled: what could not be kept to, or would take too long."""

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
MAX_LEVELS = 200  # schemas in schemas, referred ones included: llguidance takes 8 kB of stack for each
MAX_COUNT, MAX_MULTIPLE_DIGITS = 100_000, 4
MAX_COMMON_MULTIPLE = 50_000  # of all of them: a number is divided by it digit by digit; 10^6 takes minutes
MAX_PATTERNS = 12  # different ones, and formats: work doubles with each that is laid over another
MAX_PATTERN, MAX_WRITTEN_OUT = 4_000, 50_000
MAX_CHOICES, MAX_CHOICE_BYTES = 1_000, 16_384

_COUNTS = {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
MANY = {"properties", "patternProperties", "$defs", "definitions", "anyOf", "oneOf", "allOf", "prefixItems"}
ONE = {"items", "additionalProperties"}
"""Keywords whose values are several schemas, in a list or by name, and those whose value is one."""
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_OTHERS = {"type", "const", "enum", "required", "pattern", "format", "$ref", "contentMediaType", "contentEncoding"}
_NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_KEYWORDS = _COUNTS | MANY | ONE | _BOUNDS | _OTHERS | _NOTES
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_ATOM = re.compile(r"\\[pPxuU]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<low>\d+)(?:,(?P<high>\d*))?\}|.", re.DOTALL)


def checked_schema(schema: Any) -> str:
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
    if math.lcm(*(_digits(schema["multipleOf"]) for schema in schemas if "multipleOf" in schema)) > MAX_COMMON_MULTIPLE:
        raise InvalidRequestError("The values of multipleOf in the schema are too different: leave some of them out.")
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
        parts = {name: value} if name in ONE else {}
        if name in MANY and isinstance(value, dict | list):
            named = value.items() if isinstance(value, dict) else enumerate(value)
            parts = {f"{name}/{str(key).replace('~', '~0').replace('/', '~1')}": part for key, part in named}
        levels = max([levels, *(1 + _walk(part, f"{place}/{path}", found) for path, part in parts.items())])
    found[place] = levels, keywords
    return levels


def _digits(value: Any) -> int:
    """A number without sign, point and the zeros at its ends; 1 for what is none."""
    if type(value) not in (int, float) or not math.isfinite(value):
        return 1
    return int("".join(map(str, Decimal(str(value)).normalize().as_tuple().digits))) or 1


def _check_keyword(schema: dict[str, Any], name: str, value: Any, place: str) -> None:
    number = value if type(value) in (int, float) else 0
    long = _digits(value) >= 10**MAX_MULTIPLE_DIGITS
    required = len(schema["required"]) if isinstance(schema.get("required"), list) else 0
    for wrong, words in (
        (name not in _KEYWORDS and (not name.startswith("x-") or name == "x-guidance"), "is not supported"),
        (name in _COUNTS and number > MAX_COUNT, f"may be {MAX_COUNT:,} at most; a higher bound can be left out"),
        (name == "minProperties" and number > max(1, required), "is not supported beyond the required properties"),
        (name == "multipleOf" and long, f"may have {MAX_MULTIPLE_DIGITS} digits at most"),
        (name == "format" and value not in FORMATS, f"is none of {', '.join(FORMATS)}"),
    ):
        if wrong:
            raise InvalidRequestError(f"{name} at {place} of the schema {words}.")
    for pattern in [value] if name == "pattern" else value if name == "patternProperties" else ():
        check_pattern(pattern)


def check_pattern(pattern: Any) -> None:
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


def check_choices(choices: Any) -> None:
    texts = choices if isinstance(choices, tuple) and all(isinstance(text, str) for text in choices) else ()
    size = len("".join(texts).encode(errors="replace"))
    if not 1 <= len(texts) <= MAX_CHOICES or "" in texts or size > MAX_CHOICE_BYTES:
        raise InvalidRequestError(f"There may be 1 to {MAX_CHOICES:,} choices, {MAX_CHOICE_BYTES:,} bytes, none empty.")


ConstraintKind = Literal["json_object", "json_schema", "regex", "choice"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer has to be. Checked on construction; raises InvalidRequestError.

    ``schema`` is JSON Schema of draft 2020-12 as JSON text; the properties are written in its order, with at most one
    space after a comma or colon. Refused is what cannot be kept to: not, if, contains, uniqueItems, propertyNames,
    dependent..., unevaluated..., $anchor, $dynamicRef and whatever else is not in the standard (but for x-...);
    minProperties beyond the required ones; references out of the schema; formats but those in
    ``constraint_checks.FORMATS``; oneOf whose branches may overlap; numbers beyond 64 bits; much of what lays a pattern
    or format over another or over a length. ``pattern`` is a regular expression in Rust's syntax that has to match the
    whole answer: no look-around, no backreferences, no word boundaries. Each of ``choices`` is an answer.
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
            raise InvalidRequestError(f"A constraint is json_object, json_schema, regex or choice, not {self.kind!r}.")

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any] | bool | str) -> "Constraint":
        """Of a schema as JSON text or as the value that it stands for."""
        return cls("json_schema", schema=schema)  # type: ignore[arg-type]  # it becomes text there
