"""Computes arithmetic expressions from untrusted text.

It walks the syntax tree and never calls ``eval``. The length of the text and the size of the numbers are limited, so
each calculation ends quickly.
"""

import ast
import math
import operator
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any

MAX_LENGTH = 500
MAX_BITS = 4096
"""The largest integer: 4,096 bits are about 1,200 digits."""
MAX_DIGITS = 20
"""The most digits for ``round``."""

Number = int | float
_lock = threading.Lock()

ALLOWED_CHARACTERS = re.compile(r"[0-9A-Za-z_.+\-*/%(), ]*")
SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*", "^": "**", "\n": " ", "\t": " "})
"""Other characters that people and models use for operators."""


class CalculationError(Exception):
    """The text is not an arithmetic expression, or it has no result. The message says which."""


def calculate(expression: str) -> str:
    """Return the value of ``expression`` as text, with at most 15 digits for a float. Raises CalculationError."""
    text = expression.translate(SIGNS).strip()
    if not text:
        raise CalculationError("The expression is empty.")
    if len(text) > MAX_LENGTH:
        raise CalculationError(f"The expression has more than {MAX_LENGTH} characters.")
    if not ALLOWED_CHARACTERS.fullmatch(text):
        raise CalculationError(f"{_KNOWN} The expression has other characters.")
    try:
        value = _checked(_value(_parsed(text)))
    except CalculationError:
        raise
    except ZeroDivisionError:
        raise CalculationError("Division by zero.") from None
    except OverflowError:
        raise CalculationError("The number is too large.") from None
    except (SyntaxError, MemoryError, RecursionError):
        raise CalculationError("The expression is incomplete, or nested too deeply.") from None
    except (TypeError, ValueError) as error:
        raise CalculationError(f"The expression has no result: {error}.") from None
    # 15 digits hide the rounding error of binary fractions, as in 0.1 + 0.2.
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _parsed(text: str) -> ast.expr:
    # Python logs warnings for code such as 1(2) or 1if. The warning filters are global, so a lock guards them.
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text, mode="eval").body


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _checked(value)
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in UNARY:
            return _checked(UNARY[type(op)](_value(operand)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return _checked(BINARY[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _checked(FUNCTIONS[name](*(_value(argument) for argument in arguments)))
    raise CalculationError(_KNOWN)


def _checked(value: Number | complex) -> Number:
    if isinstance(value, complex):
        raise CalculationError("The result is not a real number.")
    if value.bit_length() > MAX_BITS if isinstance(value, int) else not math.isfinite(value):
        raise CalculationError("The number is too large.")
    return value


def _power(base: Number, exponent: Number) -> Any:
    # Checked before the computation: 9**9**9 takes hours and all memory.
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * abs(exponent) > MAX_BITS:
        raise CalculationError("The number is too large.")
    return base**exponent


def _round(value: Number, digits: Number = 0) -> Number:
    if digits != int(digits) or abs(digits) > MAX_DIGITS:
        raise CalculationError(f"The digits of round must be from -{MAX_DIGITS} to {MAX_DIGITS}.")
    return round(value, int(digits)) if digits else round(value)


UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "sin": math.sin,
    "cos": math.cos,
    "log": math.log,
    "exp": math.exp,
    "abs": abs,
    "round": _round,
    "min": min,
    "max": max,
}
CONSTANTS = {"pi": math.pi, "e": math.e}
_KNOWN = f"Use only numbers, + - * / // % **, parentheses, {', '.join([*FUNCTIONS, *CONSTANTS])}."
