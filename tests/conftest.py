"""Shapes and types of the numerical core are checked at every call that a test makes."""

import os

from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `import onefold` does, before torch is there

install_import_hook(["onefold.nn", "onefold.models", "onefold.objectives", "onefold.adapt"], "beartype.beartype")
