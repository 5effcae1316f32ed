"""Chat templates from model files: Jinja programs by strangers, run with bounds on what they touch, steps and size.

Jinja's immutable sandbox keeps a template from the interpreter's insides. It does not keep it from looping for a year
or from building a gigabyte of text; here every loop turn and macro call takes a step out of a budget, and every
operation that makes text larger is limited.
"""

import datetime
import json
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from onefold.core.errors import UserError

DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('this model knows the roles system, user and assistant, not ' ~ message.role) }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

MAX_SOURCE = 256 << 10  # characters of a template
MAX_TEXT = 16 << 20  # characters of any text that it builds
MAX_STEPS = 1_000_000  # loop turns and macro calls of one rendering
MAX_SECONDS = 10.0
MAX_WIDTH = 1000  # padding, indentation
# Filters that templates have a use for; the others format, randomise or pad without bounds.
FILTERS = """abs capitalize count d default dictsort e escape first float groupby indent int items join last length
list lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title trim
unique upper""".split()  # noqa: SIM905
TEXT_METHODS = """capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower
isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex
rpartition rsplit rstrip split splitlines startswith strip swapcase title upper""".split()  # noqa: SIM905


def render_template(source: str, **variables: Any) -> str:
    """The text that a chat template makes of `variables`.

    Raises UserError when it is not valid Jinja, refuses its input (`raise_exception`) or breaks a bound.
    """
    try:
        return _compile(source).render(**variables, **_helpers())
    except UserError:
        raise
    except RecursionError:
        raise UserError("the chat template calls itself without end") from None
    except TemplateError as error:
        raise UserError(f"the chat template could not be rendered: {error}") from None
    except MemoryError:
        raise UserError("the chat template builds more text than memory holds") from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise UserError(f"the chat template does not fit these messages: {type(error).__name__}: {error}") from None


def check_template(source: str) -> None:
    """Raises UserError when `source` is not valid Jinja, saying in which line."""
    try:
        _compile(source)
    except TemplateSyntaxError as error:
        raise UserError(f"line {error.lineno}: the chat template is not valid Jinja: {error}") from None
    except (TemplateError, RecursionError) as error:
        raise UserError(f"the chat template could not be read: {error}") from None


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with limits on operators, methods and filters that can make text large."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters = {name: self.filters[name] for name in FILTERS} | {"tojson": _to_json, "replace": _replace}
        self.filters |= {"indent": _indent, "join": _join}
        self.globals = {name: self.globals[name] for name in ("dict", "namespace", "range")}

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Jinja's way of putting rendered pieces together."""
        return _concat(*parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"the operator {operator} is not allowed here")
        if operator == "*":
            for amount, of in ((left, right), (right, left)):
                if isinstance(amount, int):
                    _bounded(amount * len(of) if isinstance(of, str | list | tuple) else amount)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _bounded(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:
        """No way in for `format`: a width of 10^9 is a gigabyte."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr not in TEXT_METHODS:
            return False  # center, ljust, zfill, expandtabs and their like pad without bounds
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(function, FunctionType) and function.__module__ == __name__:
            # A helper, as most calls are: the sandbox's own checks take long.
            return function(*args, **{k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")})
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *args)
        if isinstance(owner, str) and name == "join":
            (parts,) = args
            return _join(parts, owner)
        return super().call(context, function, *args, **kwargs)


class _Generation(Extension):
    """`{% generation %}`, with which some templates mark what the assistant says; its content is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=32)
def _compile(source: str) -> Template:
    if len(source) > MAX_SOURCE:
        raise UserError(f"the chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are accepted")
    environment = _Environment()
    tree = environment.parse(source)
    for name in tree.find_all(nodes.Name):
        if name.ctx != "load" and name.name in _helpers():
            raise SecurityError(f"it may not redefine {name.name}")
    for macro in tree.find_all(nodes.Macro):
        if macro.name in _helpers():
            raise SecurityError(f"it may not redefine {macro.name}")
    for node in [*tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
        node.body.insert(0, nodes.Output([_call("step__", [])]).set_lineno(node.lineno))
    for node in [*tree.find_all(nodes.Concat)]:
        # The sandbox has no hook for `a ~ b`; as a call of ours it is measured.
        node.nodes = [_call("concat__", node.nodes)]
    tree.set_environment(environment)
    return environment.from_string(tree)


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    call = nodes.Call(nodes.Name(name, "load"), arguments, [], None, None)
    call.set_lineno(1)
    return call


def _helpers() -> dict[str, Any]:
    """What templates call: the customary functions of published ones, and our own counters."""
    steps, began = 0, time.monotonic()

    def step() -> str:
        nonlocal steps
        steps += 1
        if steps > MAX_STEPS or time.monotonic() - began > MAX_SECONDS:
            raise SecurityError(f"it takes more than {MAX_STEPS:,} steps or {MAX_SECONDS:.0f} seconds")
        return ""

    def refuse(message: str) -> str:
        raise UserError(f"the chat template refuses these messages: {message}")

    def now(form: str) -> str:
        return datetime.datetime.now().strftime(str(form)[:100])

    return {"step__": step, "concat__": _concat, "raise_exception": refuse, "strftime_now": now}


def _bounded(size: int) -> None:
    if size > MAX_TEXT:
        raise SecurityError(f"it builds more than {MAX_TEXT:,} characters")


def _concat(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    _bounded(sum(map(len, texts)))
    return "".join(texts)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    _bounded(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _join(parts: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
    chosen = [part.get(attribute, "") if isinstance(part, Mapping) else "" for part in parts] if attribute else parts
    texts = [str(part) for part in chosen]
    _bounded(sum(map(len, texts)) + len(texts) * len(between))
    return str(between).join(texts)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width[:MAX_WIDTH] if isinstance(width, str) else " " * min(width, MAX_WIDTH)
    lines = str(text).splitlines(keepends=True)
    _bounded(len(lines) * len(margin))
    return "".join(
        line if (i == 0 and not first) or (not line.strip() and not blank) else margin + line
        for i, line in enumerate(lines)
    )


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """As published templates expect it: plain JSON, without HTML escapes."""
    indent = None if indent is None else min(indent, 16)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
