"""The way from ResNet to ConvNeXt is fair: every step costs the same, and changes what it says."""

import pytest

from onefold.recipes.vision import _pictures as pictures
from onefold.recipes.vision.convnext import LADDER, RESNET, ladder


@pytest.mark.slow
def test_every_step_from_resnet_to_convnext_costs_the_same():
    steps = ladder()
    assert list(steps) == [name for name, *_ in LADDER]
    cost = pictures.flops(RESNET)
    assert all(abs(pictures.flops(model) / cost - 1) < 0.03 for model in steps.values())


@pytest.mark.slow
def test_a_step_changes_what_it_names_and_widths_alone():
    before = None
    for (_, change, _), model in zip(LADDER, ladder().values()):
        if before is not None:
            same = {"widths": None, "stem_width": None}
            assert before.but(change).to_dict() | same == model.to_dict() | same
        before = model
