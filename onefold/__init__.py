"""Onefold: one toolkit for every foundation model.

import onefold

model = onefold.load("runs/quickstart")
print(model.generate("def fibonacci(n):"))

onefold.train("gpt2", data="notes/", out="runs/notes")
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onefold.infer.model import load as load
    from onefold.interop.words.word_vectors import load_vectors as load_vectors
    from onefold.recipes import train as train

__version__ = "0.1.0"
__all__ = ["__version__", "load", "load_vectors", "train"]

# Takes effect where torch is not there yet. OpenMP threads that wait for each other spin for milliseconds. Where
# another program wants the same core, the one that is waited for does not get it, and a training step takes ten
# times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Importing torch takes seconds; `import onefold` and `onefold --help` must not pay for it.
_LAZY = {
    "load": "onefold.infer.model",
    "load_vectors": "onefold.interop.words.word_vectors",
    "train": "onefold.recipes",
}


def __getattr__(name: str):
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'onefold' has no attribute {name!r}")
