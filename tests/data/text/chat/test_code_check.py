"""Answers are told apart without running them; what the data's own functions are asked for, most of them do."""

import pytest

from onefold.data.sources import Document
from onefold.data.text.chat.code_check import FAULTS, UNFINISHED, fault
from onefold.data.text.chat.docstrings import pairs

ADD = "Write a Python function with the signature `add(a, b=1)`. Return the sum of both numbers."
NAMED = "Write a Python function `add`. Return the sum."
ANY = "Write a Python function. Return the sum of `a` and b. Write `this(down)`. "
_, SYNTAX, ONE, ASKED, NOTHING, UNUSED, NAMES = FAULTS


@pytest.mark.parametrize(
    ("request_", "answer", "expected"),
    [
        (ADD, "def add(a, b=1):\n    return a + b\n", None),
        (ADD, "def add(a, b=2):\n    return a + b\n", ASKED),
        (ADD, "def plus(a, b=1):\n    return a + b\n", ASKED),
        (NAMED, "async def add(*numbers, **others):\n    return sum(numbers, *others)", None),
        (NAMED, "def plus(a):\n    return a", ASKED),
        (ANY, "def plus(self, a):\n    super().plus(a)\n    self.a = os.path.join(a)", None),
        (ANY, "def plus(a, b):\n    return [x + y for x, y in zip(a, b)]", None),
        (ANY, "def plus(a):\n    def inner(c):\n        nonlocal a\n        a = c\n    return inner", None),
        (ANY, "def plus(a):\n    return a + offset", NAMES),
        (ANY, "def plus(a):\n    return [a + offset for x in a]", NAMES),
        (ANY, "def plus(a, b):\n    return a", UNUSED),
        (ANY, "def plus(self):\n    return 1", None),
        (ANY, 'def plus():\n    """Not yet."""\n    pass', NOTHING),
        (ANY, "def plus():\n    raise NotImplementedError", NOTHING),
        (ANY, "def plus(a): return a\nplus(1)", ONE),
        (ANY, "plus = 1", ONE),
        (ANY, "", ONE),
        (ANY, "def plus(a:\n    return a", SYNTAX),
        (ANY, "def plus(a):\n    nonlocal b\n    return a", SYNTAX),  # parses, and yet would not compile
        (ANY, "def plus(a):\n    return a\0", SYNTAX),
        (ANY, "def plus(a):\n    return " + "(" * 2000 + "a" + ")" * 2000, SYNTAX),
        (ANY, "def plus(a):\n    return a" + " + a" * 3000, SYNTAX),
        (ADD, "def add(a, b=" + "-" * 500 + "1):\n    return a + b", SYNTAX),  # compiles, and cannot be written out
        (NAMED, "def add(a):\n    raise a" + ".a" * 900, None),
        (ADD + " It is `sum()`. Really.", "def add(a, b=1):\n    return a + b\n", None),
        (ADD.replace("=1", "=(1, ')')"), "def add(a, b=(1, ')')):\n    return a + b\n", None),
    ],
)
def test_faults(request_, answer, expected):
    assert fault(request_, answer) == expected
    assert fault(request_, answer, finished=False) == UNFINISHED


def test_answers_warn_nobody(recwarn):
    assert fault(ANY, "def plus(a):\n    return '\\d' + a is 3") is None
    assert not recwarn.list


def test_nothing_is_run(tmp_path):
    left = tmp_path / "left"
    code = f"def plus(a=open({str(left)!r}, 'w')):\n    open({str(left)!r}, 'w')\n    return a"
    assert fault(ANY, code) is None
    assert fault(ANY, f"open({str(left)!r}, 'w')") == ONE
    assert not left.exists()


def test_what_a_request_asks_for_is_what_its_function_has():
    head, said = 'def f{n}(a, /, *b, c="`", **d):\n', '    """Return the number {n} and all of these."""\n'
    code = head + said + "    return {n}, a, b, c, d\n"
    found = [*pairs(Document("x.py", "\n".join(code.format(n=n) for n in range(24))))]
    assert {"signature `" in pair.request for pair in found} == {True, False}
    assert [fault(pair.request, pair.code) for pair in found] == [None] * 24
