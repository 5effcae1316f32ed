"""The LSTM against torch.nn.LSTM, text by text."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from onefold.nn.lstm import LSTM, BiLSTM, Course


def twin(layer: LSTM, reference: nn.LSTM, suffix: str = "_l0") -> None:
    for name, parameter in layer.named_parameters():
        getattr(reference, name + suffix).data.copy_(parameter.data)


@pytest.mark.parametrize("projection", [None, 4])
@pytest.mark.parametrize("backward", [False, True])
def test_packed_texts_are_read_as_texts_alone(projection, backward):
    torch.manual_seed(0)
    layer, reference = LSTM(5, 7, projection), nn.LSTM(5, 7, batch_first=True, proj_size=projection or 0)
    twin(layer, reference)
    x = torch.randn(3, 9, 5, requires_grad=True)
    segments = torch.tensor([[0] * 9, [0] * 2 + [1] * 4 + [2] * 3, [0] * 5 + [3] * 4])
    course = Course.of(x[..., 0], segments, backward)
    found = course.lay(layer(course.take(x), course)[0])
    for row in range(3):
        for segment in segments[row].unique():
            here = segments[row] == segment
            text = x[row : row + 1, here]
            alone = reference(text.flip(1) if backward else text)[0]
            torch.testing.assert_close(found[row, here], (alone.flip(1) if backward else alone)[0])
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (x, *layer.parameters()))


def test_whole_rows_and_one_segment_a_row_are_the_same_course():
    x = torch.randn(2, 6, 3)
    for backward in (False, True):
        plain, told = Course.of(x[..., 0], None, backward), Course.of(x[..., 0], torch.zeros(2, 6).long(), backward)
        for name in ("places", "sizes", "texts", "rows"):
            assert torch.equal(getattr(plain, name), getattr(told, name))


def test_what_is_not_read_is_zero_and_changes_nothing():
    torch.manual_seed(0)
    layer, x = LSTM(4, 6), torch.randn(3, 5, 4)
    read = torch.tensor([[1] * 5, [0, 0, 1, 1, 1], [0] * 5]).bool()
    course = Course.of(x[..., 0], None, False, read)
    y, (h, _) = layer(course.take(x), course)
    laid = course.lay(y)
    assert not laid[~read].any()
    alone = Course.of(x[1:2, 2:, 0])
    torch.testing.assert_close(laid[1:2, 2:], alone.lay(layer(alone.take(x[1:2, 2:]), alone)[0]))
    assert sorted(course.rows.tolist()) == [0, 1]
    torch.testing.assert_close(h[course.rows == 1], laid[1:2, -1])


def test_both_directions():
    torch.manual_seed(0)
    layer, reference = BiLSTM(5, 3), nn.LSTM(5, 3, batch_first=True, bidirectional=True)
    twin(layer.forwards, reference)
    twin(layer.backwards, reference, "_l0_reverse")
    x = torch.randn(2, 6, 5)
    torch.testing.assert_close(layer(x), reference(x)[0])


def test_weights_are_dropped_in_training_only():
    torch.manual_seed(0)
    layer, x = LSTM(4, 16, weight_drop=0.5), torch.randn(1, 8, 4)
    course = Course.of(x[..., 0])
    a, b = (layer(course.take(x), course)[0] for _ in range(2))
    assert torch.equal(a[:1], b[:1])  # before the first token there is no state
    assert not torch.equal(a, b)
    layer.eval()
    assert torch.equal(*(layer(course.take(x), course)[0] for _ in range(2)))


def test_variational_dropout_keeps_one_mask_for_a_text():
    torch.manual_seed(0)
    segments = torch.tensor([[0] * 6 + [1] * 4])
    course = Course.of(segments, segments)
    laid = course.lay(course.locked(torch.ones(10, 40), 0.5))[0]
    assert set(laid.unique().tolist()) == {0.0, 2.0}
    assert (laid[:6] == laid[0]).all()
    assert (laid[6:] == laid[6]).all()
    assert not (laid[0] == laid[6]).all()


@pytest.mark.parametrize("projection", [None, 5])
def test_counting_operations_follows_no_recurrence_and_finds_the_same(projection):
    """Of a forward and a backward pass, as torch counts them where no library hides them."""

    def counted(device: str) -> int:
        layer, x = LSTM(6, 8, projection).to(device), torch.randn(2, 9, 6, device=device, requires_grad=True)
        course = Course.of(x[..., 0])
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            layer(course.take(x), course)[0].sum().backward()
        return counter.get_total_flops()

    first = 2 * 2 * 4 * 8 * (projection or 8)  # the first state is known to be zero: its gradient is not asked for
    assert counted("cpu") == pytest.approx(counted("meta"), abs=2 * first)


def test_nothing_to_read_is_no_error():
    layer, nothing = LSTM(5, 7), torch.zeros(2, 0, 5)
    course = Course.of(nothing[..., 0])
    y, (h, _) = layer(course.take(nothing), course)
    assert (y.shape, h.shape) == ((0, 7), (2, 7))
