"""Renders chat templates with the results of transformers' ``apply_chat_template``, but with limits on time and memory.

A template is code from the author of the file. Jinja's sandbox limits neither its time nor its memory. Here, each
iteration of a loop checks the time, and each operation that can make a long text of a short one is measured first.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from types import GeneratorType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 200_000
"""The maximum length of a template in characters. The templates of Granite have up to 10,000."""
MAX_VALUE_SIZE = 16_000_000
"""The maximum size of one value and of the output, in characters. An item of a list counts as 16 characters."""
MAX_NUMBER = 1_000_000
"""The maximum of a number in a call, such as a width or a count."""
MAX_INTEGER_BITS = 4096
RENDER_SECONDS = 5.0
"""The maximum CPU time for one prompt."""
ITEM = 16
_SLOW = frozenset({"wordwrap", "urlize", "striptags", "pprint"})
"""Filters for web pages, which need minutes for a long text."""


def apply_chat_template(
    template: str,
    conversation: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """Return the prompt as text. ``variables`` are the other names that the template can read, such as ``bos_token``.

    All values must have types of JSON. Raises ValueError if there is no message, TemplateError if the template cannot
    be parsed or rejects the conversation, SecurityError if it exceeds a limit, and any error of the template itself.
    """
    if not conversation:
        raise ValueError("The conversation has no message.")
    messages = [{key: value for key, value in message.items() if value is not None} for message in conversation]
    given = {
        **variables,
        "messages": [_reasoning_by_all_names(message) for message in messages],
        "tools": tools,
        "documents": documents,
        "add_generation_prompt": add_generation_prompt,
    }
    compiled = _compiled(template)
    with _environment().budget:
        return "".join(compiled.generate(given))


def _reasoning_by_all_names(message: dict[str, Any]) -> dict[str, Any]:
    """Copy the reasoning to ``reasoning_content`` and ``thinking``, as transformers does."""
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def parse(template: str) -> nodes.Template:
    """Parse the template. Raises TemplateError and RecursionError."""
    if len(template) > MAX_SOURCE:
        raise SecurityError(f"it has {len(template):,} characters")
    return _environment().parse(template)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    if len(template) > MAX_SOURCE:
        raise SecurityError(f"it has {len(template):,} characters")
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> "_Environment":
    return _Environment()


class _Budget(threading.local):
    """The time and the size that one render in one thread has used."""

    def __init__(self) -> None:
        self.until, self.size = float("inf"), 0

    def __enter__(self) -> None:
        self.until, self.size = time.thread_time() + RENDER_SECONDS, 0

    def __exit__(self, *error: object) -> None:
        self.until = float("inf")

    def tick(self, size: int) -> None:
        """Count one iteration of a loop or one macro call, which writes ``size`` characters of the template itself."""
        if time.thread_time() > self.until:
            raise SecurityError(f"it needs more than {RENDER_SECONDS:g} seconds")
        self.write(size)

    def write(self, size: int) -> None:
        self.size += size
        if self.size > MAX_VALUE_SIZE:
            raise SecurityError(f"it writes more than {MAX_VALUE_SIZE:,} characters")


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates, with limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.budget = _Budget()
        self.filters["tojson"] = _tojson
        self.filters = {name: self._bounded(name, made) for name, made in self.filters.items() if name not in _SLOW}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
        del self.globals["lipsum"]
        self.finalize = self._written

    def tick(self, size: int) -> None:
        """Call ``_Budget.tick``."""
        self.budget.tick(size)

    def joined(self, *parts: Any) -> str:
        """Evaluate ``a ~ b`` after a check of the size."""
        _size(parts)
        return "".join(map(str, parts))

    def _written(self, value: Any) -> Any:
        self.budget.write(_size(value))
        return value

    def _bounded(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(made)
        def measured(*given: Any, **named: Any) -> Any:
            given = tuple(map(self._taken, given))
            _check_call(name, given, named)
            return made(*given, **named)

        return measured

    def _taken(self, value: Any) -> Any:
        """Convert a generator to a list with a check of the size. Return other values unchanged."""
        if not isinstance(value, GeneratorType):
            return value
        items, total = [], 0
        for item in value:
            self.budget.tick(0)
            total += ITEM + _size(item)
            _limit(total)
            items.append(item)
        return items

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Exclude methods that can replace a letter by a text of any length."""
        return attr not in ("translate", "expandtabs") and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, /, *given: Any, **named: Any) -> Any:
        """Call ``obj`` after a check of its arguments."""
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)  # the sandbox wraps str.format
        if isinstance(owner, str | list | tuple):
            given = tuple(map(self._taken, given))
            _check_call(obj.__name__, (owner, *given), named)
        elif obj not in (self.tick, self.joined):
            _check_call("", given, named)
        return super().call(context, obj, *given, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Evaluate an operator after a check of the size of the result."""
        if isinstance(left, int) and isinstance(right, int):
            # Only these operators can make very large numbers.
            bits = {"**": left.bit_length() * max(right, 0), "*": left.bit_length() + right.bit_length()}
            _limit(bits.get(operator, 0), MAX_INTEGER_BITS)
        elif operator == "*":
            times, sized = (left, right) if isinstance(left, int) else (right, left)
            _limit(_size(sized) * times if isinstance(times, int) and not isinstance(sized, float) else 0)
        elif operator == "+":
            _size((left, right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, "%", (right,))
        return super().call_binop(context, operator, left, right)

    def _generate(self, source: nodes.Template, *given: Any, **named: Any) -> str:
        return super()._generate(_Ticks().visit(source), *given, **named)


class _Ticks(NodeTransformer):
    """Inserts a call of ``tick`` into each loop and macro, and replaces ``~`` by a call of ``joined``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _own("joined", node.nodes, node.lineno)

    def _ticking(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        size = sum(len(text.data) for part in node.body for text in _texts(part))
        node.body.insert(0, nodes.ExprStmt(_own("tick", [nodes.Const(size)], node.lineno), lineno=node.lineno))
        return node


def _texts(node: nodes.Node) -> list[nodes.TemplateData]:
    return [*([node] if isinstance(node, nodes.TemplateData) else []), *node.find_all(nodes.TemplateData)]


def _own(method: str, given: list[nodes.Expr], line: int) -> nodes.Call:
    environment = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(environment, given, [], None, None, lineno=line)


class _Generation(Extension):
    """The tag ``{% generation %}`` of transformers. Its content is rendered unchanged."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Macro) -> str:
        return str(caller())


def _size(value: Any) -> int:
    """Return the approximate size of ``value`` as text. Raises SecurityError above ``MAX_VALUE_SIZE``."""
    if isinstance(value, str):
        return _limit(len(value))
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        total += ITEM
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):  # not Mapping: Jinja's context is one
            total += ITEM * len(item)
            stack += [*item.keys(), *item.values()] if total <= MAX_VALUE_SIZE else []
        elif isinstance(item, list | tuple | set | frozenset):
            total += ITEM * len(item)
            stack += item if total <= MAX_VALUE_SIZE else ()
        _limit(total)
    return total


def _limit(size: int, most: int = MAX_VALUE_SIZE) -> int:
    if size > most:
        raise SecurityError(f"it requests a value of more than {MAX_VALUE_SIZE:,} characters")
    return size


def _check_call(name: str, given: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Check the size of the arguments of a filter or a method, and of its result if that can be larger."""
    values = [*given, *named.values()]
    for value in values:
        if isinstance(value, int):
            _limit(abs(value), MAX_NUMBER if value is not values[0] else 2**63)
    texts = [value for value in values if isinstance(value, str)]
    if name == "replace" and len(texts) > 2:
        _limit(len(texts[0]) + (texts[0].count(texts[1]) if texts[1] else len(texts[0]) + 1) * len(texts[2]))
    elif name == "join":
        items = sum(len(value) for value in values if isinstance(value, str | list | tuple))
        _limit(_size(values) + items * max(map(len, texts), default=0))
    elif name == "sum" and any(isinstance(value, str | list | tuple) for value in [*given[1:], *named.values()]):
        raise SecurityError("it adds lists")
    elif name == "indent":
        width = max([4, *(len(text) for text in texts[1:]), *(value for value in values[1:] if isinstance(value, int))])
        _limit(len(texts[0]) + texts[0].count("\n") * width if texts else 0)
    elif name in ("format", "format_map") and texts:
        _check_format(texts[0], "%{", values[1:])
    else:
        _size(values)


def _check_format(form: str, marks: str, values: Sequence[Any]) -> None:
    if re.search(r"\d{7}", form):
        raise SecurityError(f"it requests a width of more than {MAX_NUMBER:,}")
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    widths = sum(abs(item) for item in flat if isinstance(item, int) and form.count("*") + form.count("{"))
    _limit(len(form) + sum(map(form.count, marks)) * (_size(flat) + widths))


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter of transformers. Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


class _Dict:
    """``dict`` without access to the attributes of the class."""

    def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
        return dict(*given, **named)

    def fromkeys(self, *given: Any) -> dict[Any, Any]:
        return dict.fromkeys(*given)


class _Namespace(Namespace):
    """``namespace`` without underscore names, which could give access to Python internals."""

    def __init__(*given: Any, **named: Any) -> None:  # ``self`` can be a name in the template
        attributes = dict(*given[1:], **named)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(given[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r:.80}")
