"""Heads of classifiers of texts: pooling by hand, and blind to padding."""

import pytest
import torch

from onefold.models.text_head import TextHeadConfig, adopt_head, pool

SEGMENTS = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])


def test_pooling_is_of_the_text_alone():
    x = torch.randn(2, 4, 3)
    for row, length in ((0, 4), (1, 2)):
        text = x[row, :length]
        by_hand = {"last": text[-1], "max": text.max(0).values, "mean": text.mean(0)}
        by_hand["concat"] = torch.cat([by_hand[how] for how in ("last", "max", "mean")])
        for how, expected in by_hand.items():
            torch.testing.assert_close(pool(x, SEGMENTS, how)[row], expected)
            torch.testing.assert_close(pool(x[row : row + 1, :length], None, how)[0], expected)


@pytest.mark.parametrize("how", ["last", "mean", "max", "concat"])
def test_a_text_of_padding_alone_spoils_nothing(how):
    found = pool(torch.randn(2, 4, 3), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), how)
    assert found.isfinite().all()


@pytest.mark.parametrize("config", [TextHeadConfig(lstm=5, pooling="max"), TextHeadConfig(hidden=6, dropout=0.5)])
def test_padding_does_not_matter(config):
    torch.manual_seed(0)
    head, x = config.build(3, 2).eval(), torch.randn(2, 4, 3)
    torch.testing.assert_close(head(x, SEGMENTS)[1], head(x[1:, :2])[0])


def test_batch_norm_stands_before_both_layers():
    head = TextHeadConfig(hidden=6, batch_norm=True, pooling="concat").build(3, 2)
    x = torch.randn(16, 4, 3) * 9 + 5
    seen = []
    head.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(x)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    assert {"hidden_norm.mean", "out_norm.variance"} <= head.state_dict().keys()


def test_a_head_of_other_classes_stays_behind_whole():
    def weights(classes: int, trunk: float) -> dict[str, torch.Tensor]:
        head = TextHeadConfig(hidden=6).build(3, classes).state_dict()
        return {**{f"classifier.{name}": tensor for name, tensor in head.items()}, "trunk": torch.tensor(trunk)}

    own, theirs = weights(2, 0.0), weights(4, 1.0)
    for given in (theirs, {"trunk": theirs["trunk"]}):
        adopted = adopt_head(own, given)
        assert adopted.keys() == own.keys()
        assert all(
            tensor is (given if name == "trunk" else own)[name] or tensor.equal(own[name])
            for name, tensor in adopted.items()
        )
    assert adopt_head({"trunk": own["trunk"]}, theirs).keys() == {"trunk"}
