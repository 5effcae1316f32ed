"""Whether an answer is the Python function that was asked for, as far as that is known without running it.

Nothing is executed: the answer is parsed, compiled and its names are looked up, no more. What a function does when it
is called nobody knows from this.
"""

import ast
import builtins
import re
import symtable
import sys
import warnings
from collections.abc import Iterator

from onefold.data.text.chat.docstrings import MAX_CODE, does_something

UNFINISHED = "did not come to an end"
FAULTS = (  # in the order in which they are looked for
    UNFINISHED,
    "is not valid Python",
    "is not one function",
    "has another name or other arguments",
    "does nothing",
    "leaves an argument unused",
    "uses names that nobody defines",
)
_ASKED = re.compile(r"Write a Python function(?: with the signature)? `(\w+)(?:\((.*?)\))?`\. ", re.DOTALL)
_KNOWN = {*dir(builtins), *sys.stdlib_module_names, "__class__", "__file__"}  # a method's `super()` means `__class__`


def fault(request: str, answer: str, finished: bool = True) -> str | None:
    """The first of FAULTS that `answer` to `request`, one of docstrings.py, has; None where it has none.

    finished: whether the answer ended by itself. Modules of the standard library need not be imported in the function.
    """
    if not finished:
        return FAULTS[0]
    try:
        with warnings.catch_warnings():  # of escapes that are none
            warnings.simplefilter("ignore")
            return _fault(request, answer)
    except (RecursionError, MemoryError):  # some of what compiles is nested too deep for what looks at it
        return FAULTS[1]


def _fault(request: str, answer: str) -> str | None:
    function = _parsed(answer)
    if function is None:
        return FAULTS[1]
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return FAULTS[2]
    if (asked := _ASKED.match(request)) and not _as_asked(function, *asked.groups()):
        return FAULTS[3]
    if not does_something(function.body[ast.get_docstring(function) is not None :]):
        return FAULTS[4]
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    if any(name not in used for name in _arguments(function.args)):
        return FAULTS[5]
    return FAULTS[6] if set(_from_outside(answer)) - _KNOWN - {function.name} else None


def _parsed(answer: str) -> ast.stmt | ast.Module | None:
    """The one statement of an answer, or all of them; None where Python would not compile it."""
    if len(answer) > 2 * MAX_CODE:
        return None
    try:
        tree = ast.parse(answer)
        compile(answer, "<answer>", "exec", dont_inherit=True)  # finds a `return` outside a function, and the like
    except (SyntaxError, ValueError, OverflowError):
        return None
    return tree.body[0] if len(tree.body) == 1 else tree


def _as_asked(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str, arguments: str | None) -> bool:
    return function.name == name and (arguments is None or arguments == ast.unparse(function.args))


def _arguments(args: ast.arguments) -> Iterator[str]:
    """Their names, but for that of the instance or class."""
    positional = [*args.posonlyargs, *args.args]
    if positional and positional[0].arg in ("self", "cls"):
        positional.pop(0)
    yield from (arg.arg for arg in (*positional, args.vararg, *args.kwonlyargs, args.kwarg) if arg)


def _from_outside(answer: str) -> Iterator[str]:
    """Names that a function's body reads and does not define."""
    waiting = symtable.symtable(answer, "<answer>", "exec").get_children()
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        yield from (s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced())
