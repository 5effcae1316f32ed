"""Fixtures of the tests of formats."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.interop.published_models import published


@pytest.fixture
def saved(tmp_path) -> Callable[..., tuple[Path, torch.nn.Module]]:
    """Save the model of a case to disk: (folder, model)."""

    def save(case: str, **options) -> tuple[Path, torch.nn.Module]:
        model = published(case)
        model.save_pretrained(tmp_path / case, **options)
        return tmp_path / case, model

    return save


@pytest.fixture
def tokens() -> torch.Tensor:
    """Long[2, 33]: longer than every window, shorter than every context."""
    return torch.randint(0, 89, (2, 33), generator=torch.Generator().manual_seed(1))
