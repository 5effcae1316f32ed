"""Shapes and types of the numerical core are checked at every call that a test makes."""

from jaxtyping import install_import_hook

install_import_hook(["onefold.nn", "onefold.models", "onefold.objectives"], "beartype.beartype")
