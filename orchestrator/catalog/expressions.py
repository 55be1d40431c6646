"""Conditions on a study's rows, as `guidance_scale >= 5 and scheduler != 'DDIMScheduler'`: read, never executed."""

import ast
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from search_spaces.errors import InputError, did_you_mean

_COMPARE: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}

_COMBINE: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}

LONGEST = 2000
"""Characters of a condition; a longer one is refused, since a part of it would say something else."""


def condition(text: str, columns: Collection[str]) -> pc.Expression:
    """The filter that a text says: comparisons of columns and values, `and`, `or`, `not`, `in [..]`, `is None`.

    Raises InputError, naming the piece, for what it does not say.
    """
    if len(text) > LONGEST:
        raise InputError(f"--where {text[:40]!r}… has {len(text):,} characters; {LONGEST:,} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _expression(tree.body, columns)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(
            f'--where {text!r} cannot be read: {why}; write it as in "guidance_scale >= 5 and negative_prompt in '
            "['', 'cartoon']\""
        ) from None


def filtered(rows: pa.Table, text: str) -> pa.Table:
    """The rows for which a condition holds. Raises InputError."""
    wanted = condition(text, [name for name in rows.column_names if name != "image"])
    try:
        return rows.filter(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        first_line = str(error).partition("\n")[0]
        raise InputError(f"--where {text!r} does not suit the columns: {first_line}") from None


def _expression(node: ast.expr, columns: Collection[str]) -> pc.Expression:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = [_expression(value, columns) for value in values]
            whole = parts[0]
            for part in parts[1:]:
                whole = whole & part if isinstance(op, ast.And) else whole | part
            return whole
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_expression(operand, columns)
        case ast.Compare():
            return _comparison(node, columns)
        case ast.BinOp(op=operator) if type(operator) in _COMBINE:
            return _COMBINE[type(operator)](_expression(node.left, columns), _expression(node.right, columns))
        case ast.Name(id=name):
            if name not in columns:
                raise ValueError(f"there is no column {name!r}{did_you_mean(name, columns)}")
            return pc.field(name)
        case _:
            return pc.scalar(_value(node))


def _comparison(node: ast.Compare, columns: Collection[str]) -> pc.Expression:
    """One comparison, or a chain such as 3 < guidance_scale <= 7."""
    whole, left = None, node.left
    for operator, right in zip(node.ops, node.comparators, strict=True):
        part = _compared(left, operator, right, columns)
        whole, left = part if whole is None else whole & part, right
    assert whole is not None
    return whole


def _compared(
    left: ast.expr, operator: ast.cmpop, right: ast.expr, columns: Collection[str]
) -> pc.Expression:
    first = _expression(left, columns)
    if isinstance(operator, ast.In | ast.NotIn):
        if not isinstance(right, ast.List | ast.Tuple):
            raise ValueError(f"{ast.unparse(right)} is no list")
        within = first.isin([_value(item) for item in right.elts])
        return within if isinstance(operator, ast.In) else ~within
    if isinstance(right, ast.Constant) and right.value is None and isinstance(operator, ast.Is | ast.Eq):
        return first.is_null()
    if (
        isinstance(right, ast.Constant)
        and right.value is None
        and isinstance(operator, ast.IsNot | ast.NotEq)
    ):
        return first.is_valid()
    if type(operator) not in _COMPARE:
        raise ValueError(f"{ast.unparse(ast.Compare(left, [operator], [right]))} is no comparison of values")
    return _COMPARE[type(operator)](first, _expression(right, columns))


def _value(node: ast.expr) -> str | int | float | bool:
    match node:
        case ast.Constant(value=str() | float() as value):
            return value
        case ast.Constant(value=int() as value) if value < 2**63:
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if (
            value < 2**63
        ):
            return -value
    raise ValueError(f"{ast.unparse(node)} is neither a column nor a value")
