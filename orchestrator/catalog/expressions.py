"""Conditions on a study's rows, as `guidance_scale >= 5 and scheduler != 'DDIMScheduler'`: read, never executed."""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from search_spaces.errors import InputError, did_you_mean

_COMPARE: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.eq,
    ast.IsNot: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

_COMBINE: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}

Columns = Mapping[str, pc.Expression]
"""What each name in a condition stands for."""

LONGEST = 2000
"""Characters of a condition; a longer one is refused, since a part of it would say something else."""


def condition(text: str, columns: Columns) -> pc.Expression:
    """The filter that a text says: comparisons of columns and values, `and`, `or`, `not`, `in [..]`, `is None`.

    It is Python's syntax and means what Python does: where a row has no value, `!=` and `not in` hold of it.
    Raises InputError, naming the piece, for what it does not say.
    """
    if len(text) > LONGEST:
        raise InputError(f"--where {text[:40]!r}… has {len(text):,} characters; {LONGEST:,} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _truth(tree.body, columns)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(
            f'--where {text!r} cannot be read: {why}; write it as in "guidance_scale >= 5 and negative_prompt in '
            "['', 'cartoon']\""
        ) from None


def filtered(rows: pa.Table, text: str, names: Columns | None = None) -> pa.Table:
    """The rows for which a condition holds of their columns, and of `names` that stand for something else.

    Raises InputError.
    """
    columns = {name: pc.field(name) for name in rows.column_names if name != "image"}
    wanted = condition(text, {**(names or {}), **columns})
    try:
        return rows.filter(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        first_line = str(error).partition("\n")[0]
        raise InputError(f"--where {text!r} does not suit the columns: {first_line}") from None


def _truth(node: ast.expr, columns: Columns) -> pc.Expression:
    """Whether a condition holds of a row: true or false, never null, so that `not` says the opposite."""
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = [_truth(value, columns) for value in values]
            return reduce(operator.and_ if isinstance(op, ast.And) else operator.or_, parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_truth(operand, columns)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            lefts = [left, *rights]  # of a chain such as 3 < guidance_scale <= 7
            compared = [_compared(*each, columns) for each in zip(lefts, ops, rights, strict=False)]
            return reduce(operator.and_, compared)
        case _:
            return _not_null(_expression(node, columns))


def _expression(node: ast.expr, columns: Columns) -> pc.Expression:
    """What a piece of a condition says of a row, null where it has nothing there."""
    match node:
        case ast.BinOp(op=how) if type(how) in _COMBINE:
            return _COMBINE[type(how)](_expression(node.left, columns), _expression(node.right, columns))
        case ast.Name(id=name):
            if name not in columns:
                raise ValueError(f"there is no column {name!r}{did_you_mean(name, columns)}")
            return columns[name]
        case ast.BoolOp() | ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return _truth(node, columns)
        case _:
            return pc.scalar(_value(node))


def _compared(left: ast.expr, how: ast.cmpop, right: ast.expr, columns: Columns) -> pc.Expression:
    """One comparison, as Python has it: a null equals a null and nothing else, and is neither larger nor smaller."""
    first = _expression(left, columns)
    if isinstance(how, ast.In | ast.NotIn):
        if not isinstance(right, ast.List | ast.Tuple):
            raise ValueError(f"{ast.unparse(right)} is no list")
        within = _within(first, [_value(item) for item in right.elts])
        return within if isinstance(how, ast.In) else ~within
    is_none = isinstance(right, ast.Constant) and right.value is None
    if (isinstance(how, ast.Is | ast.IsNot) and not is_none) or type(how) not in _COMPARE:
        raise ValueError(f"{ast.unparse(ast.Compare(left, [how], [right]))} is no comparison of values")
    second = _expression(right, columns)
    if not isinstance(how, ast.Eq | ast.NotEq | ast.Is | ast.IsNot):
        return _not_null(_COMPARE[type(how)](first, second))
    same = _not_null(first == second) | (first.is_null() & second.is_null())
    return same if isinstance(how, ast.Eq | ast.Is) else ~same


def _within(first: pc.Expression, values: Sequence[str | int | float | bool | None]) -> pc.Expression:
    known = [value for value in values if value is not None]
    within = first.isin(known) if known else pc.scalar(False)
    return within | first.is_null() if len(known) < len(values) else within


def _not_null(truth: pc.Expression) -> pc.Expression:
    """A truth with false in place of null."""
    return pc.coalesce(truth, pc.scalar(False))


def _value(node: ast.expr) -> str | int | float | bool | None:
    match node:
        case ast.Constant(value=(str() | float() | None) as value):
            return value
        case ast.Constant(value=int() as value) if value < 2**63:
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if (
            value < 2**63
        ):
            return -value
    raise ValueError(f"{ast.unparse(node)} is neither a column nor a value")
