import pytest
import torch

from onefold.core.batch import ImageBatch, TokenBatch


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("channels", "mean", "std"), [(3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)), (3, (0.4,), (0.3,)), (1, (0.1,), (0.2,))]
)
def test_pixels_are_normalised_by_channel_and_the_bytes_stay(channels, mean, std, memory):
    images = torch.randint(0, 256, (2, channels, 5, 7), dtype=torch.uint8).to(memory_format=memory)
    before = images.clone()
    pixels = ImageBatch(images=images, mean=mean, std=std).pixels()
    wanted = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(pixels, wanted)
    assert torch.equal(images, before)


def test_sizes_are_counted_in_the_unit_of_the_batch():
    tokens = torch.zeros(3, 4, dtype=torch.long)
    words = TokenBatch(tokens=tokens, targets=tokens, weights=torch.ones(3, 4))
    images = ImageBatch(images=torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    assert [(batch.unit, batch.size) for batch in (words, images)] == [("tokens", 12), ("images", 3)]
    assert [part.size for part in words.split(2)] == [8, 4]
