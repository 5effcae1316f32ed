"""timm, an independent implementation of picture models: `pip install --no-deps timm`.

Its models need nothing of torchvision, whose builds have to match torch's; only its data loading does. Where there is
no torchvision, something that has every name stands in for it while timm is imported, and is gone afterwards.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

import pytest


class _AnyName(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        ours = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def timm():
    """The library; skips the test where it is not installed."""
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return pytest.importorskip("timm", reason="timm is not installed, or its torchvision is not torch's")
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        return pytest.importorskip("timm", reason="needs: pip install --no-deps timm")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
