import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.denoising import DenoisingDataset, DenoisingTextData
from onefold.data.text.documents import LoadTokenizer
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, T5_TOKENS
from onefold.models.families import gpt2
from onefold.models.seq2seq_families import t5
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

SMALL = {"context": 48, "held_out": 0.1}
TOKENS = {
    "spans": {"vocab": 400, "special": T5_TOKENS, "sentinels": 12},
    "infilling": {"vocab": 400, "special": ENCODER_TOKENS},
    "prefix": {"vocab": 400, "special": ENCODER_TOKENS},
}
KINDS = list(TOKENS)
SIDE = {"depth": 1, "block.mixer": {"heads": 2, "head_width": 8}, "block.ffn.width": 32}


@pytest.fixture(scope="module")
def prepare(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")

    def prepare(kind, **noise) -> DenoisingDataset:
        config = {
            "sources": str(folder),
            "noise": {"kind": kind, **noise},
            "tokenizer": {"kind": "bpe", **TOKENS[kind]},
        }
        return DenoisingTextData.from_dict(config | SMALL).prepare(out)

    return prepare


def epoch(dataset, number, rows=8, seed=0, rank=0, world=1):
    """The batches of one epoch."""
    with dataset.loader("train", rows, seed, rank, world, {"epoch": number, "seen": 0}) as loader:
        return [next(loader) for _ in range(dataset.plan("train", rows, seed, number).batches)]


def sides(batches):
    """(what is read, what is said) of every row that counts, without padding, after a look at what the decoder reads"""
    for batch in batches:
        source, said = batch.source, batch.weights > 0
        real = torch.ones_like(source) if batch.source_segments is None else 1 - batch.source_segments
        assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
        for b in range(batch.rows):
            if said[b].any():
                assert said[b].tolist() == sorted(said[b].tolist(), reverse=True)
                yield source[b, real[b] > 0].tolist(), batch.targets[b, said[b]].tolist()


def restored(dataset, read, said):
    """The text that was corrupted."""
    tokenizer = dataset.tokenizer
    before, end = tokenizer.prefix, tokenizer.end
    for side in (read, said):
        assert side[: len(before)] == before
        assert side[-1] == end
        side[:] = side[len(before) : -1]
    if tokenizer.sentinels:
        names = [t for t in said if t in tokenizer.sentinels]
        assert names == tokenizer.sentinels[: len(names)] == [t for t in read if t in tokenizer.sentinels]
        borders = [i for i, t in enumerate(said) if t in names] + [len(said)]
        pieces = {said[a]: said[a + 1 : b] for a, b in pairwise(borders)}
        return [t for token in read for t in pieces.get(token, [token])]
    return said if tokenizer.mask in read else read + said


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_holds_every_token_once_and_can_be_restored(prepare, kind):
    dataset = prepare(kind)
    found, rows = Counter(), []
    for read, said in sides(epoch(dataset, 0)):
        assert len(read) <= 48
        rows.append(restored(dataset, read, said))
        found.update(rows[-1])
    assert found == Counter(t for d in dataset.text("train") for t in dataset.tokenizer.encode(d.text))
    texts = [" ".join(map(str, dataset.tokenizer.encode(d.text))) for d in dataset.text("train")]
    whole = [any(" ".join(map(str, row)) in text for text in texts) for row in rows]
    assert np.mean(whole) > 0.5  # the others hold the ends of several texts


def test_corrupted_texts_fill_the_context_as_in_t5(prepare):
    dataset = prepare("spans")
    full = [batch for batch in epoch(dataset, 0) if batch.source_segments is None]
    assert full
    assert dataset.length == 52
    for batch in full:
        assert (batch.source.shape[1], batch.targets.shape[1]) == (48, 12)
        assert (batch.weights == 1).all()


def test_decoders_begin_as_published_ones_do(prepare):
    t5, bart = prepare("spans").tokenizer, prepare("infilling").tokenizer
    assert (t5.pad, t5.end, t5.prefix, t5.decoder_start) == (0, 1, [], 0)
    assert (bart.start, bart.pad, bart.end, bart.prefix, bart.decoder_start) == (0, 1, 2, [0], 2)
    assert t5.sentinels == list(range(t5.size - 1, t5.size - 13, -1))
    for kind, start in (("spans", 0), ("infilling", 2)):
        assert all((batch.tokens[:, 0] == start).all() for batch in epoch(prepare(kind), 0))


def test_rates_of_the_papers(prepare):
    spans = prepare("spans")
    rows = list(sides(epoch(spans, 0) + epoch(spans, 1)))
    sentinels = sum(t in spans.tokenizer.sentinels for _, said in rows for t in said)
    said = sum(len(said) - 1 for _, said in rows) - sentinels
    kept = sum(len(read) - 1 for read, _ in rows) - sentinels
    assert said / (said + kept) == pytest.approx(0.15, abs=0.01)
    assert said / sentinels == pytest.approx(3, abs=0.35)
    infilling = prepare("infilling")
    rows = list(sides(epoch(infilling, 0) + epoch(infilling, 1)))
    masks = sum(t == infilling.tokenizer.mask for read, _ in rows for t in read)
    kept, whole = sum(len(read) - 2 for read, _ in rows) - masks, sum(len(said) - 2 for _, said in rows)
    assert 1 - kept / whole == pytest.approx(0.3, abs=0.01)
    assert (whole - kept) / masks == pytest.approx(3, abs=0.5)


def test_without_noise_but_sentences_texts_are_permuted(prepare):
    moved = list(sides(epoch(prepare("infilling", rate=0), 0)))
    assert all(sorted(read) == sorted(said) for read, said in moved)
    assert any(read != said for read, said in moved)
    still = sides(epoch(prepare("infilling", rate=0, sentences=False), 0))
    assert all(read == said for read, said in still)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_are_always_the_same(prepare, kind):
    dataset = prepare(kind)

    def seen(rows):
        return sorted(sides(dataset.evaluation("held_out", rows)))

    assert seen(4) == seen(4) == seen(1)
    assert dataset.figures("held_out", {"ce": 3.0}, 1.0) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_processes_and_resuming_change_nothing(prepare, kind):
    dataset = prepare(kind)
    expected = epoch(dataset, 3, rows=6, seed=5)
    shares = [epoch(dataset, 3, 6, 5, rank, 3) for rank in range(3)]
    for whole, *parts in zip(expected, *shares):
        assert list(sides([whole])) == list(sides(parts))
    with dataset.loader("train", 6, 5, state={"epoch": 3, "seen": 12}) as loader:
        assert torch.equal(next(loader).source, expected[2].source)
    assert list(sides(epoch(dataset, 4, 6, 5))) != list(sides(expected))


def test_sources_have_their_shares(folder, tmp_path):
    (tmp_path / "digits.txt").write_text(" ".join(map(str, range(3000))))
    sources = [{"path": str(folder), "weight": 1}, {"path": str(tmp_path / "digits.txt"), "weight": 1}]
    config = {"sources": sources, **SMALL, "tokenizer": {"kind": "bpe", **TOKENS["spans"]}}
    dataset = DenoisingTextData.from_dict(config).prepare(tmp_path)
    with dataset.loader("train", 16, 0) as loader:
        rows = [said for _, said in sides(next(loader) for _ in range(8))]
    tokenizer = dataset.tokenizer
    digits = [tokenizer.decode(said).replace(" ", "").isdigit() for said in rows]
    assert np.mean(digits) == pytest.approx(0.5, abs=0.15)


def test_a_row_without_text_counts_for_nothing(prepare):
    dataset = prepare("spans")
    plan = dataset.plan("train", 64, 0, 0)
    last = epoch(dataset, 0, rows=64)
    empty = int((np.diff(plan.first) == 0).sum())
    assert empty
    assert sum(int((batch.weights.sum(1) == 0).sum()) for batch in last) == empty


def test_models_begin_texts_as_the_batches_do(prepare):
    for kind, tokens in (("spans", (0, None)), ("infilling", (2, 0))):
        dataset = prepare(kind)
        model = dataset.fit(t5().but({"vocab": 400, "start": 5, "first": 5}), grow=False)
        assert (model.start, model.first) == tokens
    with pytest.raises(UserError, match="reads one text and writes another, not a decoder"):
        dataset.fit(gpt2(), grow=False)
    with pytest.raises(UserError, match=r"data\.context=48 is longer than model\.context=40"):
        dataset.fit(t5().but({"vocab": 400, "context": 40}), grow=False)


def test_a_run_learns_to_fill_gaps_and_resumes(folder, tmp_path):
    sides = {f"{side}.{name}": value for side in ("encoder", "decoder") for name, value in SIDE.items()}
    model = t5().but(
        {"vocab": 400, "width": 16, "context": 64, "decoder.block.cross": {"heads": 2, "head_width": 8}, **sides}
    )
    run = Run(
        data=DenoisingTextData(sources=str(folder)).but(SMALL | {"tokenizer": TOKENS["spans"]}),
        model=model.but({"init": "fan_in"}),
        optimizer=AdamWConfig(lr=1e-2),
        trainer=TrainerConfig(steps=12, batch=8, micro_batch=3, checkpoint_every=4, keep=9),
        out=tmp_path / "whole",
    )
    whole = train(run)
    assert whole.log[-1]["loss"] < whole.log[0]["loss"]
    assert set(whole.log[-1]["held_out"]) == {"loss"}
    train(run.but({"out": str(tmp_path / "parts")}))
    for step in ("8", "12"):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / step)
    again = train(run.but({"out": str(tmp_path / "parts")}))
    assert [r["loss"] for r in again.log] == [r["loss"] for r in whole.log]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.sentinels": 0}, "needs data.tokenizer.sentinels"),
        ({"noise": "infilling"}, "needs a mask token in tokenizer.special"),
        ({"noise.rate": 1.0}, "less than 1"),
        ({"noise": "masks"}, "kind must be one of spans, infilling, prefix"),
    ],
)
def test_what_does_not_go_together(changes, message):
    with pytest.raises(UserError, match=message):
        DenoisingTextData().but(changes)


def test_bad_input(folder, tokenizer, prepare, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    config = DenoisingTextData(sources=str(folder), tokenizer=LoadTokenizer(path=str(tmp_path / "tokenizer")))
    with pytest.raises(UserError, match="texts of 567 tokens have up to 28 spans, and this tokenizer has no sentinels"):
        config.prepare(tmp_path / "out")
    with pytest.raises(UserError, match="has no mask token"):
        config.but({"noise": "infilling"}).prepare(tmp_path / "out")
    with pytest.raises(UserError, match="context=2 leaves no room for text"):
        config.but({"noise": "prefix", "context": 2}).prepare(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match="up to 28 spans, and this tokenizer has 12 sentinels"):
        DenoisingTextData.from_dict({"sources": str(folder), "tokenizer": {"kind": "bpe", **TOKENS["spans"]}}).prepare(
            tmp_path / "out"
        )


@pytest.mark.slow
def test_what_the_decoder_reads_is_what_transformers_makes_of_the_targets(prepare):
    transformers = pytest.importorskip("transformers")
    from transformers.models.bart.modeling_bart import shift_tokens_right

    small = {"vocab_size": 400, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**small, decoder_start_token_id=0))
    for batch in epoch(prepare("spans"), 0):
        text = batch.weights.sum(1) > 0
        labels = batch.targets.masked_fill(batch.weights == 0, -100)
        assert torch.equal(theirs._shift_right(labels)[text], batch.tokens[text])
    bart = prepare("infilling").tokenizer
    for batch in epoch(prepare("infilling"), 0):
        assert torch.equal(shift_tokens_right(batch.targets, bart.pad, bart.end), batch.tokens)
