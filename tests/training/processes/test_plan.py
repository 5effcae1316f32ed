"""What a plan says of a model, before anything is spread."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.recipes.efficient import mixtral
from onefold.training.processes.parallel import Unit, lay_experts


def test_a_row_for_experts_that_fits_none_is_told():
    with torch.device("meta"):
        model = mixtral.tiny().model.build()
    with pytest.raises(UserError, match=r"blocks\.\* .* fits no experts; there are blocks\.0\.ffn\.experts"):
        lay_experts(model, (Unit(pattern="blocks.*", by_expert=True),), None, torch.device("cpu"))
