"""The environment in which a model's chat template runs: what transformers offers, within bounds.

A template is code that came with a file. Jinja's immutable sandbox keeps it from reaching Python
objects; what it does not bound is work, so this does:

* Every statement, macro call and loop turn, every character written or joined, and every result
  of a filter or method is charged to a budget, before it is allocated where its size can be told
  beforehand (repetition, padding, replacing, joining, formatting). Recursion that doubles, nested
  loops and strings that double run out of it.
* At each charge the clock is looked at, too.

Not bounded: one single operation between two charges, such as a comparison or a search in a text
that the budget had let grow (at most some 10 ms at a time).
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import update_wrapper, wraps
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_environment
from jinja2.visitor import NodeTransformer

__all__ = ["BudgetExceededError", "ChatEnvironment"]

_STATEMENT = 64
_MAX_WIDTH = 1000
_MAX_BITS = 4096
_MAX_DATE_FORMAT = 256
_WIDE = re.compile(r"\d{4}")
_BODIES = (
    *(nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block, nodes.If, nodes.With, nodes.Scope),
    *(nodes.FilterBlock, nodes.AssignBlock, nodes.ScopedEvalContextModifier),
)

# Filters that make text of whatever they are given.
_STRINGIFYING = {
    *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "pprint"),
    *("replace", "safe", "string", "striptags", "title", "tojson", "trim", "truncate", "upper"),
    *("urlencode", "wordcount", "wordwrap", "xmlattr"),
}
_TAKE_WIDTHS = frozenset(["batch", "center", "indent", "round", "slice", "truncate", "wordwrap"])
_PADDING = frozenset(["center", "ljust", "rjust", "zfill"])
_REFUSED_METHODS = frozenset(["encode", "expandtabs", "translate"])
_SPLITTING = frozenset(["partition", "rpartition", "rsplit", "split", "splitlines"])


class BudgetExceededError(Exception):
    """A template did more than it may; says of what."""


class _Budget:
    def __init__(self, units: int, seconds: float) -> None:
        self.units = units
        self.deadline = time.monotonic() + seconds

    def charge(self, units: int) -> None:
        self.units -= units
        if self.units < 0:
            raise BudgetExceededError("work")
        if time.monotonic() > self.deadline:
            raise BudgetExceededError("time")

    def charge_value(self, value: object) -> int:
        """Charges the length of a value's text, nested values included, and returns it."""
        if isinstance(value, str):
            self.charge(len(value))
            return len(value)
        total, open_values = 0, [value]
        while open_values:
            item = open_values.pop()
            size = len(item) if isinstance(item, str) else 16
            self.charge(size)
            total += size
            if isinstance(item, Mapping):
                open_values += itertools.chain(item.keys(), item.values())
            elif isinstance(item, list | tuple | set | frozenset):
                open_values += item
        return total


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates, plus a budget.

    Source: `_cached_compile_jinja_template` in transformers `utils/chat_template_utils.py`.

    Args:
        clock: What `strftime_now` takes for the present.
    """

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._budget = _Budget(0, 0)
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            finalize=self._finalize,
            cache_size=0,
        )
        del self.globals["lipsum"]  # makes text of any length out of nothing
        del self.filters["urlize"]  # writes whole tags around each of its matches
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda template: _strftime(clock(), template),
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        self.filters["tojson"] = _tojson
        self.filters["join"] = self._join_filter
        for name, function in self.filters.items():
            self.filters[name] = self._guarded_filter(name, function)

    def start(self, units: int, seconds: float) -> None:
        """Begins to count anew.

        Args:
            units: Characters that may be written; a statement counts for 64.
            seconds: How long it may take, wall clock.
        """
        self._budget = _Budget(units, seconds)

    @property
    def tick(self) -> None:
        """Charges one statement; compiled templates read it before each."""
        self._budget.charge(_STATEMENT)

    def charge_literal(self, units: int) -> None:
        """Charges a long literal text, which is written without an expression."""
        self._budget.charge(units)

    def join_parts(self, *parts: object) -> str:
        """What `a ~ b` does."""
        for part in parts:
            self._budget.charge_value(part)
        return "".join(map(str, parts))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _instrument(super()._parse(source, name, filename))

    def _finalize(self, value: object) -> object:
        self._budget.charge_value(value)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Checks what an operator would make before it makes it."""
        if operator == "%" and isinstance(left, str):
            self._charge_format(left, "%", right if isinstance(right, tuple) else (right,))
        elif isinstance(left, int) and isinstance(right, int):
            _check_bits(operator, left, right)
        elif operator == "*":
            text, count = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(text, str | list | tuple) and isinstance(count, int):
                self._budget.charge(len(text) * max(count, 0) * (1 if isinstance(text, str) else 8))
        elif operator == "+" and isinstance(left, str | list | tuple):
            weight = 1 if isinstance(left, str) else 8
            self._budget.charge(weight * (len(left) + len(right)))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Checks what a method would make before it makes it."""
        self._budget.charge(_STATEMENT)
        owner = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        if isinstance(owner, str) and name not in ("format", "format_map"):
            args = self._check_method(owner, name, args, kwargs)
        result = super().call(context, function, *args, **kwargs)
        if not isinstance(function, Macro):  # what a macro writes was charged when it did
            self._charge_result(result)
        return result

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        """Refuses, beside what the sandbox refuses, methods whose work cannot be foretold."""
        if isinstance(obj, int | float | bytes) or (
            isinstance(obj, str) and attr in _REFUSED_METHODS
        ):
            return False
        return bool(super().is_safe_attribute(obj, attr, value))

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """Adds a size check to what the sandbox makes of `str.format`."""
        inner = super().wrap_str_format(value)
        if inner is None:
            return None
        template = str(cast(Any, value).__self__)

        def checked(*args: Any, **kwargs: Any) -> str:  # noqa: ANN401
            _check_widths(args)
            self._charge_format(template, "{", (*args, *kwargs.values()))
            return inner(*args, **kwargs)

        return update_wrapper(checked, inner)

    def _check_method(
        self, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        if name in _PADDING:
            _check_widths((*args, *kwargs.values()))
        elif name in _SPLITTING:
            self._budget.charge(4 * len(text))
        elif name == "replace" and len(args) >= 2:
            self._charge_replace(text, *args[:2])
        elif name == "join" and args:
            items = list(args[0]) if isinstance(args[0], Iterable) else args[0]
            self._budget.charge(len(text) * len(items) + self._budget.charge_value(items))
            args = (items,)
        return args

    def _guarded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            value, others = args[first], (*args[first + 1 :], *kwargs.values())
            if name in _TAKE_WIDTHS:
                _check_widths(others)
            if name in _STRINGIFYING and not isinstance(value, str):
                self._budget.charge_value(value)
            self._check_filter(name, value, others)
            result = function(*args, **kwargs)
            self._charge_result(result)
            return result

        return guarded

    def _check_filter(self, name: str, value: object, others: tuple[Any, ...]) -> None:
        if name == "replace" and len(others) >= 2:
            self._charge_replace(str(value), *others[:2])
        elif name == "format":
            self._charge_format(str(value), "%", others)
        elif name == "list" and isinstance(value, str):
            self._budget.charge(4 * len(value))
        elif name in ("indent", "wordwrap"):
            inserted = max((len(o) for o in others if isinstance(o, str)), default=0)
            width = max((o for o in others if isinstance(o, int)), default=4)
            text = str(value)
            pieces = text.count("\n") + 1 if name == "indent" else len(text)
            self._budget.charge(pieces * max(inserted, width if name == "indent" else 1))
        elif name == "sum" and not all(isinstance(o, int | float | str) for o in others):
            raise SecurityError("sum adds numbers only")

    @pass_environment
    def _join_filter(
        self,
        environment: ChatEnvironment,
        value: Iterable[Any],
        d: str = "",
        attribute: str | int | None = None,
    ) -> str:
        if attribute is not None:
            value = map(make_attrgetter(environment, attribute), value)
        separator = str(d)
        parts = []
        for item in value:
            self._budget.charge(len(separator) + self._budget.charge_value(item))
            parts.append(str(item))
        return separator.join(parts)

    def _charge_result(self, result: object) -> None:
        if isinstance(result, str):
            self._budget.charge(len(result) + 1)
        elif isinstance(result, list | tuple | dict):
            self._budget.charge(8 * len(result) + 1)
        else:
            self._budget.charge(1)

    def _charge_replace(self, text: str, old: object, new: object) -> None:
        found = text.count(str(old))
        self._budget.charge(len(text) + found * len(str(new)))

    def _charge_format(self, template: str, mark: str, values: Iterable[object]) -> None:
        if _WIDE.search(template) or (mark == "%" and "*" in template):
            raise SecurityError("a format with a width that wide is not available")
        longest = max((self._budget.charge_value(value) for value in values), default=0)
        self._budget.charge(len(template) + template.count(mark) * (longest + _MAX_WIDTH))


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words and changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict(...)` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:  # noqa: ANN401
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: object = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """A namespace that holds no names beginning with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - `self` may be a name
        self, *others = args
        values = dict(*others, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _check_widths(values: Iterable[object]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_WIDTH:
            raise SecurityError(f"{value} is too wide; up to {_MAX_WIDTH} is allowed")


def _check_bits(operator: str, left: int, right: int) -> None:
    bits = {
        "*": left.bit_length() + right.bit_length(),
        "**": left.bit_length() * abs(right) if abs(left) > 1 else 1,
    }
    if bits.get(operator, 0) > _MAX_BITS:
        raise SecurityError(f"a number of more than {_MAX_BITS} bits is not available")


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime(now: datetime, template: str) -> str:
    if len(template) > _MAX_DATE_FORMAT or _WIDE.search(template):
        raise SecurityError("a date format that long or wide is not available")
    return now.strftime(template)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise SecurityError(f"tojson's indent is {indent!r}; 0 to 16 is allowed")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _JoinUnderBudget(NodeTransformer):
    """Turns `a ~ b` into a call that charges the result before making it."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja's interface
        self.generic_visit(node)
        method = nodes.EnvironmentAttribute("join_parts")
        return nodes.Call(method, node.nodes, [], None, None).set_lineno(node.lineno)


def _instrument(template: nodes.Template) -> nodes.Template:
    """Has every statement charged before it runs, and `~` joined under the budget."""
    _JoinUnderBudget().visit(template)
    for node in [template, *template.find_all(_BODIES)]:
        for field in ("body", "else_"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                charged = [new for old in statements for new in (_charge(old), old)]
                if field == "body" and not charged:  # a loop without a body turns as well
                    charged = [_charge(node)]
                setattr(node, field, charged)
    return template


def _charge(statement: nodes.Node) -> nodes.Node:
    literal = 0
    if isinstance(statement, nodes.Output):
        literal = sum(len(n.data) for n in statement.nodes if isinstance(n, nodes.TemplateData))
    expression: nodes.Expr = nodes.EnvironmentAttribute("tick")
    if literal > _STATEMENT:
        method = nodes.EnvironmentAttribute("charge_literal")
        expression = nodes.Call(method, [nodes.Const(literal)], [], None, None)
    return nodes.ExprStmt(expression).set_lineno(statement.lineno)
