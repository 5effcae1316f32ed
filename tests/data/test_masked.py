from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.masked import MaskedDataset, MaskedTextData
from onefold.data.text import LoadTokenizer, TrainBPE
from onefold.data.tokenizer import ENCODER_TOKENS
from onefold.models.families import gpt2
from onefold.objectives.language import NextToken

SMALL = {"context": 32, "tokenizer": {"vocab": 320}, "held_out": 0.1}
START, PAD, END, _, MASK = range(5)


@pytest.fixture(scope="module")
def prepare(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")

    def prepare(**masking) -> MaskedDataset:
        return MaskedTextData(sources=str(folder)).but(SMALL | {"masking": masking}).prepare(out)

    return prepare


def epoch(dataset, number, rows=8, seed=0, rank=0, world=1):
    """The batches of one epoch."""
    state = {"epoch": number, "seen": 0}
    with dataset.loader("train", rows, seed, rank, world, state) as loader:
        return [next(loader) for _ in range(dataset.plan("train", rows, seed, number).batches)]


def pieces(batch):
    """(tokens, targets, weights) of every piece, by its positions."""
    B, T = batch.tokens.shape
    positions = torch.arange(T).expand(B, T) if batch.positions is None else batch.positions
    segments = torch.zeros(B, T).long() if batch.segments is None else batch.segments
    for b in range(B):
        for segment in segments[b].unique():
            at = segments[b] == segment
            assert positions[b, at].tolist() == list(range(int(at.sum())))
            if batch.targets[b, at][0] != PAD:
                yield tuple(t[b, at] for t in (batch.tokens, batch.targets, batch.weights))


def test_an_epoch_reads_every_token_once_in_pieces_with_a_beginning_and_an_end(prepare):
    dataset = prepare()
    found = Counter()
    for batch in epoch(dataset, 0):
        for _, targets, weights in pieces(batch):
            assert (targets[0], targets[-1]) == (START, END)
            assert not weights[0]
            assert not weights[-1]
            found.update(targets[1:-1].tolist())
    wanted = Counter(t for d in dataset.text("train") for t in dataset.tokenizer.encode(d.text))
    assert found == wanted


def test_hidden_tokens_are_asked_for_and_others_are_not(prepare):
    batches = [b for number in range(4) for b in epoch(prepare(), number)]
    seen, targets, asked = (
        torch.cat([getattr(b, n).flatten() for b in batches]) for n in ("tokens", "targets", "weights")
    )
    asked = asked > 0
    assert torch.equal(seen[~asked], targets[~asked])
    ordinary = targets >= len(ENCODER_TOKENS)
    assert asked[ordinary].float().mean() == pytest.approx(0.15, abs=0.005)
    assert not asked[~ordinary].any()
    assert (seen[asked] == MASK).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (seen[asked] == targets[asked]).float().mean() == pytest.approx(0.1, abs=0.02)


def by_document(dataset, number):
    """(document, place in it) of every token that is asked for in an epoch."""
    plan, found = dataset.plan("train", 8, 0, number), set()
    for batch, start in zip(epoch(dataset, number), range(0, 10**6, 8)):
        first = plan.first[start : start + 9]
        for row in range(8):
            column = 0
            for p in range(first[row], first[row + 1]):
                document, offset, length = (int(getattr(plan.pieces, n)[p]) for n in ("document", "offset", "length"))
                asked = batch.weights[row, column + 1 : column + 1 + length].nonzero().flatten()
                found |= {(document, offset + int(i)) for i in asked}
                column += length + 2
    return found


def test_dynamic_masks_change_with_the_epoch_and_static_ones_come_again(prepare):
    dynamic = [by_document(prepare(), number) for number in (0, 1, 0)]
    assert dynamic[0] == dynamic[2] != dynamic[1]
    assert len(dynamic[0] & dynamic[1]) < 0.3 * len(dynamic[0])
    static = [by_document(prepare(masks=2), number) for number in range(4)]
    assert static[0] == static[2] != static[1] == static[3]


def test_whole_words(prepare):
    dataset = prepare(whole_words=True)
    tokens, goes_on = dataset.tokenizer, dataset.maskable.goes_on
    for batch in epoch(dataset, 0):
        for _, targets, weights in pieces(batch):
            inner, asked = targets[1:-1].numpy(), weights[1:-1].numpy() > 0
            words = dataset.maskable.words(inner, np.arange(len(inner)) == 0)
            assert (asked == asked[words]).all()
    assert goes_on[tokens.encode("ab")[1:]].all()


def test_evaluations_are_always_the_same(prepare):
    dataset = prepare()

    def asked(rows):
        found = set()
        for batch in dataset.evaluation("held_out", rows):
            found |= {(tuple(s.tolist()), tuple(w.tolist())) for s, _, w in pieces(batch)}
        return found

    assert asked(4) == asked(4) == asked(1)
    assert dataset.figures("held_out", {"ce": 3.0}, 1.0) == {}


def test_processes_and_resuming_change_nothing(prepare):
    dataset = prepare()
    expected = epoch(dataset, 3, rows=6, seed=5)
    shares = [epoch(dataset, 3, 6, 5, rank, 3) for rank in range(3)]
    for whole, *parts in zip(expected, *shares):
        for name in ("tokens", "targets", "weights"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    with dataset.loader("train", 6, 5, state={"epoch": 3, "seen": 12}) as loader:
        assert torch.equal(next(loader).tokens, expected[2].tokens)


def test_the_loss_looks_at_what_is_asked_for_alone_and_finds_the_same(prepare):
    dataset = prepare()
    torch.manual_seed(0)
    model = gpt2().but({"vocab": 320, "width": 16, "depth": 1, "context": 32, "block.mixer.heads": 2}).build()
    objective = NextToken().build()
    for batch in epoch(dataset, 0)[:3]:
        assert batch.asked.shape[1] < batch.tokens.shape[1]
        assert torch.equal(batch.weights.gather(1, batch.asked).sum(1), batch.weights.sum(1))
        results = []
        for form in (batch, replace(batch, asked=None)):
            model.zero_grad()
            term = objective(model, form, 0).terms["ce"]
            term.sum.backward()
            results.append([term.sum, term.count, *(p.grad.clone() for p in model.parameters())])
        torch.testing.assert_close(*results)


def test_a_tokenizer_without_a_mask_is_refused(folder, tokenizer, tmp_path):
    with pytest.raises(UserError, match="needs a mask token"):
        MaskedTextData.from_dict({"tokenizer": TrainBPE(vocab=320).to_dict()})
    tokenizer.save(tmp_path / "tokenizer")
    config = MaskedTextData(sources=str(folder), tokenizer=LoadTokenizer(path=str(tmp_path / "tokenizer")))
    with pytest.raises(UserError, match="has no mask token"):
        config.prepare(tmp_path / "out")
