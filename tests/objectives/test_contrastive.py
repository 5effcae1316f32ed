"""InfoNCE against its plain formula; chunks, clipping and the trainer's micro-batches change nothing."""

import json
import weakref

import pytest
import torch
import torch.nn.functional as F

from onefold.core.batch import PairedTextBatch
from onefold.models.embedder import EmbedderConfig
from onefold.models.transformer import BlockConfig, DecoderConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.objectives.contrastive import LARGEST_SCALE, InfoNCE, bounded, infonce
from onefold.training.log import read_log
from onefold.training.run import Run, train
from tests.training.processes.test_parallel import train_with_two

ROWS = 13


def embedder(dropout: float = 0.0, **changes):
    block = BlockConfig(mixer=AttentionConfig(heads=2), ffn=MLPConfig(width=24), dropout=dropout)
    trunk = DecoderConfig(vocab=40, width=16, depth=2, context=12, block=block)
    torch.manual_seed(0)
    return EmbedderConfig(trunk=trunk, pooling="last", **changes).build().double()


def pairs(rows: int = ROWS) -> PairedTextBatch:
    generator = torch.Generator().manual_seed(1)
    tokens, others = torch.randint(0, 40, (2, rows, 12), generator=generator)
    lengths, other_lengths = torch.randint(2, 13, (2, rows), generator=generator)
    return PairedTextBatch(tokens=tokens, lengths=lengths, others=others, other_lengths=other_lengths)


def gradients(model, loss) -> list[torch.Tensor]:
    model.zero_grad()
    loss.terms["nce"].sum.backward()
    return [p.grad.clone() for p in model.parameters()]


def plain(first, second, scale):
    logits, labels = scale * first @ second.T, torch.arange(len(first))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def test_an_encoder_that_tells_nothing_apart_is_right_by_chance_only():
    same = torch.ones(8, 4) / 2
    assert infonce(same, same, torch.tensor([1.0])).metrics["accuracy"].sum == 1


def test_it_is_the_symmetric_cross_entropy():
    first, second = (F.normalize(torch.randn(ROWS, 6), dim=1).requires_grad_() for _ in range(2))
    log_scale = torch.tensor([2.5], requires_grad=True)
    inputs = (first, second, log_scale)
    found = infonce(*inputs)
    expected = plain(first, second, log_scale.exp())
    term = found.terms["nce"]
    assert term.count == ROWS
    torch.testing.assert_close(term.sum / term.count, expected)
    for ours, theirs in zip(torch.autograd.grad(term.sum / ROWS, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    right = ((first @ second.T).argmax(1) == torch.arange(ROWS)).sum()
    assert found.metrics["accuracy"].sum == right


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
def test_chunks_give_the_gradient_of_the_whole_batch(chunk):
    model, batch, objective = embedder(), pairs(), InfoNCE().build()
    whole = gradients(model, objective(model, batch, 0))
    parts = gradients(model, objective.in_chunks(chunk)(model, batch, 0))
    for name, a, b in zip(dict(model.named_parameters()), whole, parts):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)  # the loss itself is fp32
        assert a.abs().max() > 0


def test_chunks_are_read_again_with_the_same_random_numbers():
    model, batch = embedder(dropout=0.3), pairs()
    torch.manual_seed(7)
    parts = gradients(model, InfoNCE().build().in_chunks(4)(model, batch, 0))
    torch.manual_seed(7)
    kept = [[model.encode(*inputs) for inputs in part.sides()] for part in batch.split(4)]
    sides = [torch.cat(side).float() for side in zip(*kept)]
    whole = gradients(model, infonce(*sides, model.log_scale().float()))
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_memory_is_that_of_a_chunk():
    """Features of few chunks are alive at any time, of all of them when nothing is read again."""
    model, batch, alive, most = embedder(), pairs(40), [], 0
    norm = model.trunk.blocks[0].ffn_norm

    def note(module, inputs, output):
        nonlocal most
        alive.append(weakref.ref(output))
        alive[:] = [ref for ref in alive if ref() is not None]
        most = max(most, sum(len(ref()) for ref in alive))

    norm.register_forward_hook(note)
    gradients(model, InfoNCE().build()(model, batch, 0))
    assert most == 80
    alive.clear()
    most = 0
    gradients(model, InfoNCE().build().in_chunks(5)(model, batch, 0))
    assert most <= 10


def test_the_scale_ends_at_a_hundred_and_comes_back():
    beyond = torch.tensor([5.0], requires_grad=True)
    assert bounded(beyond).item() == pytest.approx(LARGEST_SCALE)
    for gradient, passed in ((1.0, 1.0), (-1.0, 0.0)):
        assert torch.autograd.grad(bounded(beyond), beyond, torch.tensor([gradient]))[0].item() == passed
    below = torch.tensor([3.0], requires_grad=True)
    assert torch.autograd.grad(bounded(below), below, torch.tensor([-1.0]))[0].item() == -1.0


def small_run(folder) -> Run:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    rows = [{"query": f"{a} {i}", "document": f"{b} {i}"} for i, (a, b) in enumerate(zip(words * 5, words[1:] * 6))]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = {"kind": "bpe", "vocab": 270}
    return Run.from_dict(
        {
            "data": {"kind": "contrastive_text", "path": str(folder / "pairs.jsonl"), "pairs": "columns"},
            "model": {"kind": "embedder", "pooling": "last", "trunk": embedder().config.trunk.to_dict()},
            "objective": "infonce",
            "trainer": {"steps": 3, "batch": 12, "device": "cpu"},
        }
    ).but({"data.tokenizer": tokenizer, "data.context": 12, "model.trunk.vocab": 270})


def assert_alike(logs):
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    assert logs[0][-1]["held_out"]["loss"] == pytest.approx(logs[1][-1]["held_out"]["loss"], abs=1e-4)


def test_negatives_are_the_whole_batch_whatever_the_trainer_reads_at_once(tmp_path):
    """Three steps with micro-batches of 3 of 12 rows, and with all of them at once."""
    run = small_run(tmp_path)
    assert_alike([train(run.but({"trainer.micro_batch": n, "out": str(tmp_path / str(n))})).log for n in (3, 12)])


@pytest.mark.slow
def test_negatives_are_those_of_all_processes(tmp_path):
    """Sharded weights, two chunks in each process: as one process with the whole batch."""
    run = small_run(tmp_path)
    two = run.but({"trainer.micro_batch": 4, "out": str(tmp_path / "two")})
    train_with_two(two)
    assert_alike([train(run.but({"out": str(tmp_path / "one")})).log, read_log(two.out / "log.jsonl")])


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [9, 13])
def test_an_evaluation_by_two_processes_is_that_of_one(tmp_path, held_out):
    """9 rows: the processes have 4 and 5, a chunk and two. 13: of the last batch the first process has none, and the
    row that it repeats is nobody's negative."""
    rows = [{"query": f"{i} of {i * i}", "document": f"{i + 7} is {i}"} for i in range(held_out)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = small_run(tmp_path).but({"data.validation": str(tmp_path / "test.jsonl"), "trainer.steps": 1})
    two = run.but({"trainer.micro_batch": 4, "out": str(tmp_path / "two")})
    train_with_two(two)
    one, other = train(run.but({"out": str(tmp_path / "one")})).log[-1], read_log(two.out / "log.jsonl")[-1]
    assert other["held_out"] == pytest.approx(one["held_out"], abs=1e-4)
