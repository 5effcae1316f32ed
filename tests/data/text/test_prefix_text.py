import numpy as np
import pytest
import torch

import onefold
from onefold.core.errors import UserError
from onefold.data.text.documents import TextData
from onefold.data.text.prefix_text import PrefixTextData
from onefold.models.families import gpt2
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

SMALL = {"context": 32, "tokenizer.vocab": 320, "held_out": 0.1}
TINY = {
    "vocab": 320,
    "width": 16,
    "depth": 1,
    "context": 32,
    "block.mixer.heads": 2,
    "block.ffn.width": 64,
    "embed.position.context": 32,
}


@pytest.fixture(scope="module")
def data(folder):
    return PrefixTextData(sources=str(folder)).but(SMALL)


@pytest.fixture(scope="module")
def dataset(data, tmp_path_factory):
    return data.prepare(tmp_path_factory.mktemp("out"))


def epoch(dataset, number, rows=8, seed=0, rank=0, world=1):
    with dataset.loader("train", rows, seed, rank, world, {"epoch": number, "seen": 0}) as loader:
        return [next(loader) for _ in range(dataset.plan("train", rows, seed, number).batches)]


def pieces(batch):
    """(tokens, targets, weights, prefix) of every piece that counts."""
    B, T = batch.tokens.shape
    segments = torch.zeros(B, T).long() if batch.segments is None else batch.segments
    for b in range(B):
        for segment in segments[b].unique():
            at = segments[b] == segment
            if batch.weights[b, at].any():
                yield [t[b, at] for t in (batch.tokens, batch.targets, batch.weights, batch.prefix)]


def test_what_follows_a_prefix_is_asked_for_and_nothing_that_is_seen(dataset):
    shares = []
    for batch in epoch(dataset, 0):
        assert batch.inputs()[3] is batch.prefix
        for tokens, targets, weights, prefix in pieces(batch):
            size = int(prefix.sum())
            assert size >= 1
            assert prefix.tolist() == [True] * size + [False] * (len(tokens) - size)
            assert weights.tolist() == [0.0] * (size - 1) + [1.0] * (len(tokens) - size + 1)
            assert torch.equal(tokens[1:], targets[:-1])
            if len(tokens) == 32:
                shares.append(size)
    assert set(shares) <= set(range(1, 33))
    assert np.mean(shares) == pytest.approx(16.5, abs=2.5)  # every place is equally likely


def test_the_text_is_that_of_plain_text(dataset, folder, tmp_path):
    plain = TextData(sources=str(folder)).but(SMALL).prepare(tmp_path)
    for ours, theirs in zip(epoch(dataset, 2), epoch(plain, 2), strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.targets, theirs.targets)
        assert (ours.weights <= theirs.weights).all()


def test_processes_and_sizes_of_batches_change_nothing(dataset):
    whole = epoch(dataset, 1)
    halves = [epoch(dataset, 1, rank=rank, world=2) for rank in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(batch.prefix, torch.cat([part.prefix for part in parts]))
    fours, eights = ([b.prefix for b in dataset.evaluation("held_out", rows)] for rows in (4, 8))
    assert torch.equal(fours[0], eights[0][:4])


def test_a_run_makes_a_model_that_reads_prompts_whole(data, tmp_path):
    run = Run(
        data=data,
        model=gpt2().but(TINY),
        optimizer=AdamWConfig(lr=1e-2),
        trainer=TrainerConfig(steps=8, batch=8, device="cpu"),
        out=tmp_path / "run",
    )
    result = train(run)
    assert set(result.log[-1]["held_out"]) == {"loss"}
    model = onefold.load(tmp_path / "run")
    assert model.config.prefix
    ids = model.ids("the river runs and then")
    [first] = model.generate([ids], max_new_tokens=1, temperature=0)
    logits = model.network(torch.tensor([ids]), prefix=torch.ones(1, len(ids), dtype=torch.bool))[0, -1]
    assert first == model.tokenizer.decode([int(logits.argmax())])
    with pytest.raises(UserError, match="prefix"):
        model.save(tmp_path / "published", format="hf")


def test_plain_text_makes_it_a_causal_model_again(dataset, folder, tmp_path):
    model = dataset.fit(gpt2().but(TINY), grow=False)
    assert model.prefix
    plain = TextData(sources=str(folder)).but(SMALL).prepare(tmp_path)
    assert not plain.fit(model, grow=False).prefix


def test_models_that_cannot_look_ahead_are_refused(dataset):
    with pytest.raises(UserError, match="need a decoder with attention, not a recurrent model"):
        dataset.fit(RecurrentConfig(vocab=320, width=16, hidden=16, depth=1, context=32), grow=False)
