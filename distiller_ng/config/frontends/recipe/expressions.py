"""The arithmetic of ``eval(...)`` in recipes, walked over Python's syntax tree: nothing is executed (layer 4)."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["evaluate", "expression_in"]

Number: TypeAlias = int | float
Lookup: TypeAlias = Callable[[str], Any]

_LONGEST = 1000
_LARGEST = 2**1000
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: operator.pow,
    }
)
_SIGNS: Mapping[type[ast.unaryop], Callable[[Any], Any]] = MappingProxyType(
    {ast.USub: operator.neg, ast.UAdd: operator.pos}
)
_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"abs": abs, "float": float, "int": int, "max": max, "min": min, "round": round}
)
_ALLOWED = f"numbers, variables, + - * / // % **, parentheses and {', '.join(_FUNCTIONS)}"


def expression_in(value: Any) -> str | None:
    """The text between ``eval(`` and ``)`` of a whole string; None for any other value.

    >>> expression_in("eval( a + b )")
    'a + b'
    """
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("eval(") and text.endswith(")"):
            return text[len("eval(") : -1].strip()
    return None


def evaluate(expression: str, lookup: Lookup) -> Any:
    """The value of an expression; a name alone may stand for anything, arithmetic is with numbers.

    ``lookup(name)`` gives a variable's value, or raises :class:`ArgumentError`, as this function does for everything
    that is no arithmetic or has no result.

    >>> evaluate("round(2 * -a, 1) + 1", {"a": 0.25}.__getitem__)
    0.5
    """
    if expression.isidentifier():
        return lookup(expression)
    if len(expression) > _LONGEST:
        raise ArgumentError(f"the expression has more than {_LONGEST} characters")
    try:
        tree = ast.parse(expression, mode="eval")
        return _checked(_walk(tree.body, lookup), expression)
    except ArgumentError:
        raise
    except SyntaxError:
        raise ArgumentError(f"eval({expression}) is no expression; allowed: {_ALLOWED}") from None
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ArgumentError(f"eval({expression}) has no value: {error}") from None
    except (RecursionError, MemoryError):
        raise ArgumentError("the expression is nested too deeply") from None


def _walk(node: ast.expr, lookup: Lookup) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        return _number(node.id, lookup(node.id))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _walk(node.left, lookup), _walk(node.right, lookup)
        if isinstance(node.op, ast.Pow) and (abs(right) > 1000 or abs(left) > _LARGEST):
            raise ArgumentError(f"the power {left} ** {right} is too large")
        return _bounded(_OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)](_walk(node.operand, lookup))
    if isinstance(node, ast.Call):
        return _call(node, lookup)
    raise ArgumentError(f"{ast.unparse(node)!r} is not allowed in eval(...); allowed: {_ALLOWED}")


def _call(node: ast.Call, lookup: Lookup) -> Any:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    if name not in _FUNCTIONS:
        raise ArgumentError(f"there is no function {name!r} in eval(...). {did_you_mean(name, _FUNCTIONS)}")
    if any(keyword.arg is None for keyword in node.keywords):
        raise ArgumentError(f"{name}(**...) is not allowed in eval(...)")
    given = [_walk(argument, lookup) for argument in node.args]
    named = {str(keyword.arg): _walk(keyword.value, lookup) for keyword in node.keywords}
    return _FUNCTIONS[name](*given, **named)


def _number(name: str, value: Any) -> Number:
    """A variable in arithmetic: a number, or one written as text."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    raise ArgumentError(f"the variable {name!r} is {value!r}, which is no number to calculate with")


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ArgumentError("the result is too large")
    return value


def _checked(value: Any, expression: str) -> Number:
    if isinstance(value, complex) or not isinstance(value, int | float):
        raise ArgumentError(f"eval({expression}) gives {value!r}, which is no number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(f"eval({expression}) is not finite")
    return value
