"""Estimates against closed forms and against what really happens."""

import weakref

import pytest
import torch

from onefold.core.batch import ImageBatch, TokenBatch
from onefold.core.errors import UserError
from onefold.models.families import gpt2
from onefold.models.transformer import count_parameters
from onefold.models.vision.sizes import convnext, nfnet, resnet
from onefold.objectives.classification import Classification
from onefold.objectives.language import NextToken
from onefold.training import estimate
from onefold.training.optimizers.optim import AdamWConfig, MuonConfig


def batch(rows: int, length: int, vocab: int) -> TokenBatch:
    ids = torch.randint(vocab, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return TokenBatch(tokens=ids[:, :-1], targets=ids[:, 1:], weights=torch.ones(rows, length))


def test_flops_of_gpt2_small():
    """PaLM's appendix B: 6 for every weight of a matrix, and 12 · layers · width · context for attention."""
    counted = estimate.count_flops(gpt2("small"), NextToken().build(), batch(1, 1024, 50257))
    blocks, head = 12 * 12 * 768**2, 50257 * 768
    assert counted == 6 * (blocks + head) + 12 * 12 * 768 * 1024


@pytest.mark.parametrize(("config", "published"), [(resnet(), 4.1), (convnext("t"), 4.5), (nfnet("f0", 256), 12.38)])
def test_flops_of_convolutional_networks(config, published):
    """The papers' billions of multiplications of a forward pass; the backward pass costs twice that, groups or not."""
    pixels = torch.zeros(2, 3, config.image, config.image, dtype=torch.uint8)
    batch = ImageBatch(images=pixels, targets=torch.eye(2, 1000))
    assert estimate.count_flops(config, Classification().build(), batch) / 6e9 == pytest.approx(published, rel=0.03)


@pytest.fixture
def small(make_run):
    return make_run().model.but({"block.dropout": 0.0, "context": 64})


def test_bytes_of_parameters(small):
    total = count_parameters(small)
    assert estimate.parameter_bytes(small, AdamWConfig()) == 16 * total
    matrices = sum(p.numel() for n, p in small.build().named_parameters() if n.startswith("blocks.") and p.ndim == 2)
    assert estimate.parameter_bytes(small, MuonConfig()) == 16 * total - 4 * matrices


def test_bytes_of_a_row_are_what_autograd_keeps(small):
    model, objective = small.build(), NextToken().build()
    short = estimate.row_bytes(model, objective, batch(1, 16, 288))
    long = estimate.row_bytes(model, objective, batch(1, 64, 288))
    # Per token and layer at least: two norms, qkv, attention's output, gate and up, their product, each in fp32.
    assert short >= 16 * 2 * 4 * (2 * 16 + 32 + 16 + 80 + 40)
    head = model.unembed.weight.nbytes  # its gradient is taken in the forward pass, whatever the length
    assert (long - head) / (short - head) == pytest.approx(4, rel=0.25)
    three = estimate.row_bytes(model, objective, batch(3, 64, 288))
    assert three == pytest.approx(long - head + head / 3, rel=0.02)


def test_measuring_gives_its_memory_back_at_once():
    model = gpt2().but({"vocab": 32, "width": 16, "depth": 1, "block.mixer.heads": 2, "block.ffn.width": 16}).build()
    seen = []
    model.blocks[0].ffn.register_forward_hook(lambda module, given, found: seen.append(weakref.ref(found)))
    estimate.row_bytes(model, NextToken().build(), batch(1, 8, 32))
    assert seen[0]() is None


def test_measuring_leaves_running_averages_alone():
    model = resnet().but({"image": 32, "classes": 3, "blocks": (1, 1), "widths": (8, 16), "stem": 8}).build()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    pictures = ImageBatch(images=torch.randint(0, 256, (2, 3, 32, 32)).byte(), targets=torch.eye(3)[:2])
    assert estimate.row_bytes(model, Classification().build(), pictures) > 0
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_rows_that_fit():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert estimate.fit_rows(32, each=10**9, free=100 * 10**9, device=gpu) == 32
    assert estimate.fit_rows(32, each=10**9, free=30 * 10**9, device=gpu) == 16  # 21 fit: two equal parts
    assert estimate.fit_rows(30, each=10**9, free=16 * 10**9, device=gpu) == 10
    assert estimate.fit_rows(30, each=10**9, free=0, device=gpu) == 1
    assert estimate.fit_rows(32, each=2**27, free=10**12, device=cpu) == 8  # a gigabyte at a time is enough


def test_a_model_that_cannot_fit_is_refused_before_it_is_built(make_run):
    giant = make_run().model.but({"width": 2**16, "depth": 20, "block.ffn.width": 2**18})
    with pytest.raises(UserError, match=r"weights, gradients and optimizer need [\d.]+ GB, and [\d.]+ GB are free"):
        estimate.check_memory(giant, AdamWConfig(), torch.device("cpu"))


def test_free_memory_and_speed_are_plausible():
    cpu = torch.device("cpu")
    assert 10**8 < estimate.free_bytes(cpu) < 10**14
    assert 10**9 < estimate.machine_speed(cpu) < 10**14
