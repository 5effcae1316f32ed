import ast

from onefold.data.sources import Document, Skipped, read
from onefold.data.text.chat.docstrings import pairs

SOURCE = '''
import os

def add(a, b=1, *, c: int = 2) -> int:
    """Return the sum of a, b and c, all of which are numbers."""
    # a comment stays
    return a + b + c

class Box:
    """A box of things, which is no function at all."""

    @property
    def full(self):
        """Whether anything at all lies in the box by now."""
        text = """
inside
"""
        return bool(self.things)

    async def empty(self):
        """Take everything out of the box, one after another.

        Waits where it must.
        """
        for thing in self.things:
            await thing.out()

    def later(self):
        """Something that every subclass has to define itself."""
        raise NotImplementedError("later")

    def nothing(self):
        """Does nothing at all, though it says so at length."""

    def short(self):
        """Too short."""
        return 1

    def bare(self):
        return 2

if os.name == "nt":
    def one_line(): """Everything of this one stands on a single line."""; return 3
else:
    try:
        def nested(x):
            """Return the nested value, whatever x may happen to be."""
            def inner():
                """Return the value of the inner function, that is x."""
                return x
            return inner()
    except ImportError:
        pass
'''


def test_functions_with_docstrings_become_pairs():
    found = {p.name.split()[1]: p for p in pairs(Document("box.py", SOURCE))}
    assert list(found) == ["add", "empty", "nested", "inner"]
    assert found["add"].code == (
        "def add(a, b=1, *, c: int = 2) -> int:\n    # a comment stays\n    return a + b + c\n"
    )
    assert "Return the sum of a, b and c, all of which are numbers." in found["add"].request
    assert "Waits where it must." in found["empty"].request
    assert found["empty"].code.startswith("async def empty(self):\n    for thing")
    assert found["inner"].code == "def inner():\n    return x\n"
    assert [m["role"] for m in found["add"].messages] == ["user", "assistant"]
    lines = SOURCE.splitlines()
    for p in found.values():
        assert p.name.split()[1] in lines[p.first_line - 1]
        assert lines[p.last_line - 1].strip() == p.code.strip().splitlines()[-1].strip()


def test_what_is_no_python_has_no_pairs():
    for text in ("some prose, nothing else", "def f(:\n", "\0", "x = " + "(" * 500):
        assert list(pairs(Document("x", text))) == []


def test_real_sources():
    found = []
    for document in read("stdlib", skipped=Skipped()):
        if document.name.startswith(("json/", "collections/", "str", "text", "conc", "http/")):
            found += pairs(document)
    assert len(found) > 150
    for p in found:
        [function] = ast.parse(p.code).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(function) is None or function.body[1:]
    kinds = [("`" in p.request, "signature" in p.request) for p in found]
    assert all(kinds.count(kind) > 30 for kind in [(True, True), (True, False), (False, False)])


def test_what_is_nested_too_deep_to_be_written_out_is_passed_over():
    deep = "def f(a=" + "-" * 500 + '1):\n    """Return the argument as it is given."""\n    return a\n'
    found = pairs(Document("x.py", deep + deep.replace("-", "").replace("f(", "g(")))
    assert [pair.name for pair in found] == ["x.py:4 g"]
