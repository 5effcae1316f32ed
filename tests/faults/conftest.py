"""The same small run as in tests/training, once for a module."""

import pytest

from tests.training.conftest import make_corpus, small_run


@pytest.fixture(scope="module")
def module_run(tmp_path_factory):
    return small_run(make_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("run") / "out")
