"""Instruction pairs out of Python sources: what a docstring asks for, and the function that does it."""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from onefold.data.sources import Document

MIN_REQUEST = 20  # characters: shorter docstrings say too little to ask for anything
MAX_REQUEST = 800
MAX_CODE = 3000
MIN_STATEMENTS = 1

# A request with the signature, one with the name, one with neither; which one is a function's own hash.
_FORMS = (
    "Write a Python function with the signature `{signature}`. {request}",
    "Write a Python function `{name}`. {request}",
    "Write a Python function. {request}",
)


@dataclass(frozen=True)
class Pair:
    """One request and its answer, and the lines of the file (from 1) that they come from."""

    name: str
    first_line: int
    last_line: int
    request: str
    code: str
    docstring: str  # alone

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.request}, {"role": "assistant", "content": self.code}]


def pairs(document: Document) -> Iterator[Pair]:
    """The pairs of one file, in order; none when it is not valid Python.

    The code is a function without its docstring, at the margin; it always parses.
    """
    try:
        tree = ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = document.text.splitlines(keepends=True)
    waiting: list[ast.AST] = [*reversed(tree.body)]
    while waiting:  # statements only: walking all expressions takes as long as parsing
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (pair := _pair(node, lines, document.name)):
            yield pair
        inside = [getattr(node, name, []) for name in ("body", "handlers", "orelse", "finalbody")]
        waiting += [statement for block in inside for statement in block][::-1]


def _pair(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], file: str) -> Pair | None:
    docstring = ast.get_docstring(node, clean=True)
    body = node.body[1:]
    if docstring is None or not MIN_REQUEST <= len(docstring) <= MAX_REQUEST or not does_something(body):
        return None
    code = _code(node, lines)
    if code is None:
        return None
    try:
        signature = f"{node.name}({ast.unparse(node.args)})"
    except RecursionError:  # it parses, nested as deep as it may be
        return None
    name = f"{file}:{node.lineno} {node.name}"
    form = _FORMS[
        hashlib.blake2b(f"{node.name}\0{docstring}".encode("utf-8", "replace"), digest_size=1).digest()[0] % 3
    ]
    request = form.format(signature=signature, name=node.name, request=inspect.cleandoc(docstring))
    return Pair(name, node.lineno, node.end_lineno or node.lineno, request, code, docstring)


def does_something(body: list[ast.stmt]) -> bool:
    """Whether there is more than `pass`, `...` or the refusal of an abstract method."""
    if len(body) < MIN_STATEMENTS:
        return False
    first = body[0]
    constant = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    named = (getattr(node, "id", None) for node in ast.walk(first))
    refusal = isinstance(first, ast.Raise) and "NotImplementedError" in named
    return not (len(body) == 1 and (isinstance(first, ast.Pass) or constant or refusal))


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    """The function's own lines without the docstring's; None when they cannot stand alone."""
    docstring, after = node.body[0], node.body[1]
    if docstring.end_lineno is None or node.end_lineno is None or after.lineno <= docstring.end_lineno:
        return None
    if docstring.lineno == node.lineno:
        return None
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    code = textwrap.dedent("".join(kept)).strip("\n") + "\n"
    if len(code) > MAX_CODE:
        return None
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return None  # a text inside it reaches further left than the function
    return code
