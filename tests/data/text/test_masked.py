import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.documents import LoadTokenizer, TrainBPE
from onefold.data.text.masked import MaskedDataset, MaskedTextData
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS
from onefold.models.encoder_families import bert
from onefold.models.families import gpt2
from onefold.objectives.language import MaskedAndNext, NextToken
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

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


@pytest.fixture(scope="module")
def pairs(folder, tmp_path_factory):
    data = MaskedTextData(sources=str(folder), next_sentence=True).but(SMALL)
    return data.prepare(tmp_path_factory.mktemp("pairs"))


def test_pairs_are_passages_that_follow_or_do_not(pairs):
    tokenizer = pairs.tokenizer
    documents = [tokenizer.encode(d.text) for d in pairs.text("train")]
    spelled = [" ".join(map(str, d)) for d in documents]
    follows, asked, real = [], 0.0, 0
    for batch in epoch(pairs, 0):
        for row, types, classes in zip(batch.targets, batch.types, batch.classes):
            first, second = (row == END).nonzero().flatten().tolist()
            assert row[0] == START
            assert (row[second + 1 :] == PAD).all()
            assert types.tolist() == [first < t <= second for t in range(len(row))]
            together = " ".join(str(t) for t in row[1:second].tolist() if t != END)
            if classes[0]:
                assert any(together in text for text in spelled)
            follows.append(bool(classes[0]))
            assert classes.sum() == 1
            real += second - 2
        hidden = batch.tokens != batch.targets
        assert (batch.weights[hidden] == 1).all()
        assert (batch.targets[batch.weights > 0] >= len(ENCODER_TOKENS)).all()
        asked += batch.weights.sum().item()
    assert np.mean(follows) == pytest.approx(0.5, abs=0.05)
    assert asked / real == pytest.approx(0.15, abs=0.02)


def test_pairs_of_processes_epochs_and_evaluations(pairs):
    expected = epoch(pairs, 1, rows=6)
    for whole, *parts in zip(expected, *(epoch(pairs, 1, 6, 0, rank, 2) for rank in range(2))):
        assert torch.equal(torch.cat([p.tokens for p in parts]), whole.tokens)
    assert not torch.equal(epoch(pairs, 0, rows=6)[0].targets, expected[0].targets)
    held_out = [torch.cat([b.tokens for b in pairs.evaluation("held_out", rows)]) for rows in (4, 4, 3)]
    assert torch.equal(held_out[0], held_out[1])
    assert torch.equal(held_out[0], held_out[2])


def test_both_tasks_are_learned_together(pairs):
    model = bert().but({"vocab": 320, "width": 16, "depth": 1, "context": 32, "block.mixer.heads": 2}).build()
    batch = epoch(pairs, 0)[0]
    loss = MaskedAndNext().build()(model, batch, 0)
    sum(term.sum for term in loss.terms.values()).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "mixer.qkv" not in n
    )
    model.eval()
    logits = model.classify(model.features(batch.tokens, None, batch.segments, batch.types))
    expected = torch.nn.functional.cross_entropy(logits, batch.classes.argmax(1), reduction="sum")
    torch.testing.assert_close(MaskedAndNext().build()(model, batch, 0).terms["next"].sum, expected)
    with pytest.raises(UserError, match=r"set model\.classes=2"):
        pairs.fit(model.config.but({"classes": 3}), False)


def test_pairs_are_asked_for_where_there_are_none(prepare):
    model = bert().but({"vocab": 320, "width": 16, "depth": 1, "context": 32, "block.mixer.heads": 2}).build()
    with pytest.raises(UserError, match=r"set data\.next_sentence=true"):
        MaskedAndNext().build()(model, epoch(prepare(), 0)[0], 0)


def test_a_run_learns_both_tasks_and_resumes(folder, tmp_path):
    model = bert().but({"vocab": 320, "width": 16, "depth": 1, "context": 32, "block": {"mixer": {"heads": 2}}})
    run = Run(
        data=MaskedTextData(sources=str(folder), next_sentence=True).but(SMALL),
        model=model.but({"block.ffn.width": 32}),
        objective=MaskedAndNext(),
        optimizer=AdamWConfig(lr=1e-2),
        trainer=TrainerConfig(steps=12, batch=8, micro_batch=3, checkpoint_every=4),
        out=tmp_path / "whole",
    )
    whole = train(run)
    first, final = whole.log[0], whole.log[-1]
    assert final["ce"] < first["ce"]
    assert set(final["held_out"]) == {"loss", "ce", "next", "accuracy"}
    assert final["held_out"]["loss"] == pytest.approx(final["held_out"]["ce"] + final["held_out"]["next"])
    train(run.but({"out": str(tmp_path / "parts"), "trainer.keep": 9}))
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "12")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "8")
    again = train(run.but({"out": str(tmp_path / "parts"), "trainer.keep": 9}))
    assert [r["loss"] for r in again.log] == [r["loss"] for r in whole.log]
