"""A model's chat template, which may come from anybody: sandboxed, and bounded in steps and sizes.

Templates run in jinja2's sandbox with what transformers gives them (`render_jinja_template`, transformers 5.5). The
sandbox keeps them from Python and from files, but not from `'a' * 10**10` or loops without end, and a render that has
begun cannot be stopped from outside. So each one has a budget here, which loops, calls and long values use up.
"""

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from deployments.generation.template_budget import MAX_CHARACTERS, Budget, TemplateTooDear, current_budget

_MAX_SOURCE = 1_000_000
_STEPS_OF_A_CALL = 10
_MAX_WIDTH = 1000
_WIDTH_FILTERS = frozenset({"batch", "center", "indent", "slice", "tojson", "truncate", "wordwrap"})
_WIDTH_METHODS = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
_REMOVED_FILTERS = ("pprint", "urlize", "xmlattr", "random", "striptags")
_REMOVED_GLOBALS = ("lipsum",)
_UNBOUNDED_METHODS = frozenset({"format_map", "translate"})
MARKS = "\U00012009\U000120b7\U0001218e\U00012317\U0001305a\U000130c4\U00013153\U000131fe\U000132a1\U000133e6" + (
    "\U0001061d\U000106b2\U00014423\U000145d0\U00016827\U0001696e"
)
"""Letters of dead scripts, which names in clients' texts begin with (`control_tokens.py`): printable, without case, and
the same in every normal form, so that nothing that templates and tokenizers do changes them."""
_NAME_OR_OTHER = re.compile(f"[{MARKS}][\ua000-\ua3e7]{{2}}|([^\x00-\x7f])")


class ChatTemplate:
    """A compiled template. Rendering raises jinja2.TemplateError, and what else Python raises on wrong values."""

    def __init__(self, source: str) -> None:
        if len(source) > _MAX_SOURCE:
            raise TemplateTooDear(f"it has more than {_MAX_SOURCE} characters")
        self._template = _Environment().from_string(source)

    def render(self, **variables: object) -> str:
        """The text of a conversation."""
        budget, parts, characters = Budget(), list[str](), 0
        token = current_budget.set(budget)
        try:
            for part in self._template.generate(**variables):
                characters += len(part)
                budget.take_text(len(part))
                if characters > MAX_CHARACTERS:
                    raise TemplateTooDear(f"it makes a prompt of more than {MAX_CHARACTERS} characters")
                parts.append(part)
        finally:
            current_budget.reset(token)
        return "".join(parts)


class _Generation(Extension):
    """`{% generation %}` marks what the model said; here it means nothing more than what it contains."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounds(NodeTransformer):
    """Wraps what the sandbox cannot intercept: loops, concatenation, and containers as they are made."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concatenated")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_sized") if node.items else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "_sized") if node.items else node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment, with a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name in _REMOVED_GLOBALS:
            del self.globals[name]
        self.filters["tojson"] = _to_json
        self.filters = {name: _bounded(name, filter_) for name, filter_ in self.filters.items()}
        self.filters |= {"_counted": _counted, "_concatenated": _concatenated, "_sized": _sized}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.finalize = _finalize

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = current_budget.get()
        texts = [side for side in (left, right) if isinstance(side, str | bytes)]
        if operator == "*" and any(isinstance(side, str | bytes | list | tuple) for side in (left, right)):
            count = next((side for side in (left, right) if isinstance(side, int)), 0)
            if not texts:
                raise TemplateTooDear("it multiplies a list")
            budget.take_text(len(texts[0]) * max(0, count))
        elif operator in ("*", "**") and _magnitude(operator, left, right) > 2**64:
            raise TemplateTooDear("it computes with huge numbers")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            budget.take_value(right)
        elif operator == "+" and texts:
            budget.take_text(sum(map(len, texts)))
        elif operator == "+" and isinstance(left, list | tuple):
            budget.take_value((left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = current_budget.get()
        budget.take(_STEPS_OF_A_CALL)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            _check_method(budget, owner, name, args)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, str):
            budget.take_text(len(result))
        elif isinstance(result, list | tuple | dict):
            budget.take_value(result)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _UNBOUNDED_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if (formats := super().wrap_str_format(value)) is not None:
            _check_format(value.__self__)
        return formats


def _check_method(budget: Budget, text: str, name: str, args: tuple[Any, ...]) -> None:
    """Before a method of a text that may make a far longer one."""
    if name in _WIDTH_METHODS:
        _check_widths(args)
    elif name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        budget.take_text(len(text) + text.count(args[0]) * len(args[1]))
    elif name == "join" and args and isinstance(args[0], list | tuple):
        budget.take_value(args[0])
        budget.take_text(len(text) * len(args[0]))


def _check_widths(values: Iterable[object]) -> None:
    if any(isinstance(value, int) and value > _MAX_WIDTH for value in values):
        raise TemplateTooDear(f"it fills a text up to more than {_MAX_WIDTH} characters")


def _check_format(text: str) -> None:
    """Refuses widths of four digits, and those that come from values."""
    digits = longest = 0
    for character in text[:MAX_CHARACTERS]:
        digits = digits + 1 if character.isdigit() else 0
        longest = max(longest, digits)
    if longest > 3 or "*" in text or ":{" in text.replace(" ", ""):
        raise TemplateTooDear("it formats with a width that may be huge")


def _bounded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which takes from the budget what its values are long. jinja2's marks on the function stay."""
    takes_environment = hasattr(filter_, "jinja_pass_arg")

    @wraps(filter_)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget.get(None) or Budget()  # jinja2 computes constants while it compiles
        values = [*args[1:], *kwargs.values()] if takes_environment else [*args, *kwargs.values()]
        if name in _WIDTH_FILTERS:
            _check_widths(values[1:])
        if name == "format":
            _check_format(str(values[0]))
        if name == "replace":
            budget.take_text(len(str(values[0])) + str(values[0]).count(str(values[1])) * len(str(values[2])))
        if name == "join" and len(values) > 1 and isinstance(values[0], list | tuple):
            budget.take_text(len(str(values[1])) * len(values[0]))
        for value in values:
            if not (name in _SHALLOW and isinstance(value, list | tuple | dict)):
                budget.take_value(value)
        result = filter_(*args, **kwargs)
        if name not in _SHALLOW:
            budget.take_value(result)
        return result

    return bounded


_SHALLOW = frozenset({"length", "count", "first", "last", "list", "items", "default", "d"})
"""Filters that do not look into the members of a list."""


@pass_context
def _counted(context: Context, values: Iterable[object]) -> Iterator[object]:
    budget = current_budget.get()
    for value in values:
        budget.take()
        yield value


@pass_context
def _concatenated(context: Context, values: list[object]) -> str:
    current_budget.get().take_value(values)
    return "".join(map(str, values))


@pass_context
def _sized(context: Context, value: object) -> object:
    current_budget.get().take_value(value)
    return value


def _finalize(value: object) -> object:
    if not isinstance(value, str) and (budget := current_budget.get(None)) is not None:
        budget.take_value(value)
    return value


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' own: jinja2's would escape characters of HTML."""
    if isinstance(indent, str) or len("".join(separators or ())) > 8:
        raise TemplateTooDear("it separates JSON by long texts")
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return _NAME_OR_OTHER.sub(_escaped, text) if ensure_ascii else text


def _escaped(match: re.Match[str]) -> str:
    """A character outside of ASCII as JSON escapes it. Names stay as they are: they are taken out later."""
    return json.dumps(match[1])[1:-1] if match[1] else match[0]


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_WIDTH:
        raise TemplateTooDear("it formats the time by a long text")
    return datetime.datetime.now().strftime(pattern)


def _magnitude(operator: str, left: float, right: float) -> float:
    """How large the numbers are; an exponent counts for far more than a factor."""
    return max(abs(left), abs(right) * (2**58 if operator == "**" else 1))
