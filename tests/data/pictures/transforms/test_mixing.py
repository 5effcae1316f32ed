import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.data.pictures.transforms import CutMix, Mixup, MixupOrCutMix, RandomErasing
from onefold.data.pictures.transforms.mixing import Beta
from tests.data.pictures.transforms.helpers import applied, pictures


def flat(values, side=20):
    """Pictures of one grey each, and targets that tell which."""
    images = np.tile(np.array(values, np.uint8)[:, None, None, None], (1, side, side, 3))
    return images, np.eye(len(values), dtype=np.float32)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8, 1.0, 4.0])
def test_shares_are_beta_distributed(alpha):
    uniform = (np.arange(100_000) + 0.5) / 100_000
    found = Beta(alpha)(uniform)
    assert found.mean() == pytest.approx(0.5, abs=1e-6)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)
    drawn = np.sort(np.random.default_rng(0).beta(alpha, alpha, 100_000))
    assert abs(found - drawn)[50:-50].max() < 0.01


def test_mixup_mixes_pixels_and_targets_in_the_same_shares():
    images, targets = flat([0, 200] * 50)
    found, shares = applied(Mixup(alpha=1.0), images, targets)
    bright = shares[:, 1::2].sum(1)
    assert abs(found[:, 3, 4, 1] - 200 * bright).max() <= 0.51
    assert np.allclose(shares.sum(1), 1)
    for row in range(100):  # nothing but the row and its partner
        assert set(np.flatnonzero(shares[row])) <= {row, row ^ 1}
    assert bright.std() > 0.2
    odd, shares = applied(Mixup(), images[:5], targets[:5])
    assert np.array_equal(odd[4], images[4])
    assert np.array_equal(shares[4], targets[4])


def test_cutmix_puts_in_a_rectangle_of_the_partner_and_counts_its_area():
    images, targets = flat([0, 200] * 100, side=30)
    found, shares = applied(CutMix(), images, targets)
    area = (found[..., 0] == 200).mean((1, 2))
    assert np.allclose(shares[:, 1::2].sum(1), area, atol=1e-6)
    for row in range(0, 200, 2):
        lines = (found[row, ..., 0] == 200).any(1).sum()
        columns = (found[row, ..., 0] == 200).any(0).sum()
        assert round(area[row] * 900) == lines * columns
    assert set(np.unique(found)) == {0, 200}


def test_one_of_both_in_the_shares_given():
    images, targets = flat([0, 200] * 300)
    found, shares = applied(MixupOrCutMix(cutmix_share=0.25, probability=0.8), images, targets)
    blended = np.isin(found, (0, 200)).all((1, 2, 3))
    alone = (shares.max(1) == 1) & blended
    assert (~blended).mean() == pytest.approx(0.6, abs=0.06)
    assert alone.mean() == pytest.approx(0.2, abs=0.06)  # and the smallest rectangles
    assert np.array_equal(found[alone], images[alone])


def test_pairs_are_the_same_in_any_share_of_the_batch():
    images, targets = pictures(8, 10, 10, 3), np.eye(8, dtype=np.float32)
    whole, shares = applied(MixupOrCutMix(), images, targets, rows=np.arange(40, 48))
    half, half_shares = applied(MixupOrCutMix(), images[4:], targets[4:], rows=np.arange(44, 48))
    assert np.array_equal(whole[4:], half)
    assert np.array_equal(shares[4:], half_shares)


def test_without_labels_mixing_is_refused():
    with pytest.raises(UserError, match="without labels"):
        applied(Mixup(), pictures(2, 4, 4, 1))


def test_erasing_loses_one_rectangle_of_some():
    images = np.full((400, 24, 24, 3), 100, np.uint8)
    found, _ = applied(RandomErasing(probability=0.5, fill="zeros"), images)
    lost = (found == 0).all(3)
    some = lost.any((1, 2))
    assert some.mean() == pytest.approx(0.5, abs=0.08)
    for mask in lost[some]:
        assert mask.sum() == mask.any(1).sum() * mask.any(0).sum()
        assert 0.01 < mask.mean() < 0.36
    noise, _ = applied(RandomErasing(probability=1.0), images)
    values = noise[noise != 100]
    assert abs(np.bincount(values, minlength=256)[:100] / len(values) - 1 / 255).max() < 0.002
    assert values.mean() == pytest.approx(127.6, abs=1.5)
