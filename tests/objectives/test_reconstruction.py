"""The masked autoencoder's loss: only hidden patches count, each on its own scale."""

import numpy as np
import torch
from torch import Tensor, nn

from onefold.objectives.reconstruction import Reconstruction, masked_error, normalised

from .small_pictures import picture_batch


class Guess(nn.Module):
    """Says the same of every patch. Masks are drawn from torch's generator, or from a seed of their own."""

    def __init__(self):
        super().__init__()
        self.guess = nn.Parameter(torch.zeros(16))
        self.asked: list[int | None] = []

    def reconstruct(self, pixels: Tensor, seed: int | None) -> tuple[Tensor, Tensor, Tensor]:
        self.asked.append(seed)
        patches = pixels[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)  # [B, N, 16]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        mask = torch.rand(patches.shape[:2], generator=generator) < 0.6
        return self.guess.expand_as(patches), patches, mask


def test_the_loss_is_the_plain_mean_over_hidden_patches():
    random = np.random.default_rng(0)
    prediction, target = random.normal(size=(2, 3, 5, 8))
    mask = random.random((3, 5)) < 0.5
    scaled = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    expected = ((prediction - scaled) ** 2).mean(-1)[mask].mean()
    tensors = torch.tensor(prediction), normalised(torch.tensor(target)), torch.tensor(mask)
    term = masked_error(*tensors).terms["mse"]
    np.testing.assert_allclose(float(term.sum / term.count), expected)
    assert term.count == mask.sum()


def test_visible_patches_get_no_gradient():
    prediction = torch.zeros(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    masked_error(prediction, torch.ones(2, 4, 3), mask).terms["mse"].sum.backward()
    assert torch.equal(prediction.grad.abs().sum(-1) > 0, mask)


def test_a_patch_of_one_colour_asks_for_nothing():
    assert normalised(torch.full((1, 2, 16), 0.7)).abs().max() < 1e-3


def test_saying_the_mean_costs_one():
    """A normalised patch has variance 1, so a model that knows nothing has a loss of about that."""
    model, batch = Guess(), picture_batch(20)
    term = Reconstruction().build()(model, batch, 0).terms["mse"]
    torch.testing.assert_close(term.sum / term.count, torch.tensor(15 / 16), rtol=1e-3, atol=0)


def test_masks_change_while_training_and_stay_in_evaluations():
    model, batch, objective = Guess(), picture_batch(3), Reconstruction().build()
    for mode in (True, True, False, False):
        objective(model.train(mode), batch, 0)
    assert model.asked[:2] == [None, None]
    assert model.asked[2] is not None
    assert model.asked[2] == model.asked[3]
    torch.manual_seed(3)
    counts = [objective(model.train(), batch, 0).terms["mse"].count.item() for _ in range(8)]
    assert len(set(counts)) > 1
