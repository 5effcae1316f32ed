import csv
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.order import order_by_length
from onefold.data.sources import read
from onefold.data.split import content_hash
from onefold.data.text.documents import Corpus, TextData, TrainBPE
from onefold.data.text.labelled.passages import passages
from onefold.data.text.labelled.text import LabelledTextData
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, Tokenizer
from onefold.models.encoder_families import roberta
from onefold.models.vision.sizes import mae
from onefold.objectives.classification import Classification
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig
from tests.data.conftest import prose

CLASSES = ("cold", "hot", "warm")
ROWS = [{"text": prose(i, 3 + i % 40), "other": f"more {i}", "label": CLASSES[i % 3]} for i in range(120)]
TINY = {
    "vocab": 400,
    "width": 16,
    "depth": 1,
    "context": 64,
    "embed.position.context": 64,
    "block": {"mixer": {"heads": 2}, "ffn": {"width": 32}},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([prose(i, 200) for i in range(9)], 300, ENCODER_TOKENS)


def write(folder, kind, rows=ROWS):
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def texts(dataset):
    return {split: list(dataset.texts(split)) for split in ("train", "held_out")}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_splits(kind, tokenizer, tmp_path):
    dataset = LabelledTextData(path=write(tmp_path, kind)).prepare(tmp_path / "out", tokenizer)
    assert dataset.classes == CLASSES
    assert (dataset.size("train"), dataset.size("held_out")) == (108, 12)
    found = texts(dataset)
    assert sorted(found["train"] + found["held_out"]) == sorted((r["text"], "", r["label"]) for r in ROWS)
    reference = LabelledTextData(path=write(tmp_path, "jsonl")).prepare(tmp_path / "out", tokenizer)
    assert found == texts(reference)


def test_a_saved_dataset_keeps_its_splits_and_names(tokenizer, tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": names})
    parts = {
        name: datasets.Dataset.from_dict({"sentence": [f"{name} {i}" for i in range(6)], "label": [1, 0] * 3}, features)
        for name in ("train", "validation", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    dataset = LabelledTextData(path=str(tmp_path / "saved")).prepare(tmp_path / "out", tokenizer)
    assert dataset.classes == ("no", "yes")
    found = texts(dataset)
    assert {len(rows) for rows in found.values()} == {6}
    assert found["held_out"][0] == ("validation 0", "", "yes")


def test_an_own_validation_is_not_learned_from(tokenizer, tmp_path):
    own = write(tmp_path, "jsonl", ROWS[:7])
    whole = write(tmp_path, "csv")
    dataset = LabelledTextData(path=whole, validation=own).prepare(tmp_path / "out", tokenizer)
    assert (dataset.size("train"), dataset.size("held_out")) == (113, 7)  # what is evaluated on is not learned


def test_equal_texts_are_never_on_both_sides(tokenizer, tmp_path):
    path = write(tmp_path, "csv", [row for row in ROWS for _ in range(3)])
    found = texts(LabelledTextData(path=path, held_out=0.3).prepare(tmp_path / "out", tokenizer))
    sides = [{text for text, _, _ in rows} for rows in found.values()]
    assert not sides[0] & sides[1]
    assert len(found["held_out"]) == pytest.approx(0.3 * 360, abs=3)


def test_batches_hold_framed_texts_and_their_classes(tokenizer, tmp_path):
    data = LabelledTextData(path=write(tmp_path, "csv"), second="other", context=24)
    dataset = data.prepare(tmp_path / "out", tokenizer)
    expected = {}
    for text, other, name in texts(dataset)["train"]:
        [(ids, _)] = tokenizer.encode_framed([text], [other], 24)
        expected[tuple(ids)] = name
    seen = set()
    with dataset.loader("train", 9, 0) as loader:
        for batch in (next(loader) for _ in range(12)):
            assert batch.tokens.shape[1] <= 24
            padding = torch.zeros_like(batch.tokens) if batch.segments is None else batch.segments
            for row, targets, segments in zip(batch.tokens, batch.targets, padding):
                assert (row[segments == 1] == tokenizer.pad).all()
                ids = tuple(row[segments == 0].tolist())
                assert expected[ids] == CLASSES[targets.argmax()]
                assert targets.sum() == 1
                seen.add(ids)
    assert seen == set(expected)


def test_types_tell_a_pair_apart_where_the_tokenizer_does(tmp_path):
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    data = LabelledTextData(
        path=write(tmp_path, "csv"), second="other", tokenizer=TrainBPE(vocab=300, special=special), held_out=0
    )
    dataset = data.prepare(tmp_path / "out")
    with dataset.loader("train", 4, 0) as loader:
        batch = next(loader)
    for tokens, types in zip(batch.tokens, batch.types):
        first, second = (tokens == 3).nonzero().flatten().tolist()
        expected = (torch.arange(len(tokens)) > first) & (torch.arange(len(tokens)) <= second)
        assert torch.equal(types > 0, expected)


def test_orders_by_length():
    lengths = np.random.default_rng(0).integers(1, 500, 1003)
    order = order_by_length(lengths, 10, 1, 2)
    assert sorted(order) == list(range(1003))
    assert np.array_equal(order, order_by_length(lengths, 10, 1, 2))
    assert not np.array_equal(order, order_by_length(lengths, 10, 1, 3))
    batches = lengths[order[:1000]].reshape(100, 10)
    assert np.ptp(batches, axis=1).mean() < 15  # at random it would be about 400
    assert abs(batches[:30].mean() - lengths.mean()) < 60  # a beginning is a fair sample
    padded = batches.max(1).sum() * 10 / batches.sum()
    assert padded < 1.05


def test_processes_and_resuming_change_nothing(tokenizer, tmp_path):
    dataset = LabelledTextData(path=write(tmp_path, "csv")).prepare(tmp_path / "out", tokenizer)

    def first(count, **given):
        with dataset.loader("train", 6, 1, **given) as loader:
            return [(next(loader)).targets for _ in range(count)]

    expected = first(30)
    for whole, *parts in zip(expected, *(first(30, rank=r, world=3) for r in range(3))):
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(first(1, state={"epoch": 1, "seen": 18})[0], expected[18 + 3])


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"a": "x", "label": 1}], {}, r"say which column holds the text with data\.text"),
        ([{"text": "x", "b": 1}], {}, r"say which column holds the label with data\.label"),
        ([{"text": "x", "label": ""}], {}, r"rows\.csv:2: no label"),
        ([{"text": "x", "label": 1}], {"second": "other"}, "has text, label, and no 'other'"),
    ],
)
def test_mistakes_are_named(rows, settings, message, tokenizer, tmp_path):
    with pytest.raises(UserError, match=message):
        LabelledTextData(path=write(tmp_path, "csv", rows), **settings).prepare(tmp_path / "out", tokenizer)


def test_other_mistakes(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match="is no table"):
        LabelledTextData(path=str(tmp_path / "a.txt")).prepare(tmp_path / "out", tokenizer)
    data = LabelledTextData(path=write(tmp_path, "csv"))
    with pytest.raises(UserError, match="needs a tokenizer"):
        data.prepare(tmp_path / "out")
    with pytest.raises(UserError, match="a model that classifies texts, not a mae"):
        data.prepare(tmp_path / "out", tokenizer).fit(mae(), False)


def test_a_run_learns_what_words_tell(tmp_path):
    words = {"cold": "snow ice winter", "hot": "sun fire summer", "warm": "spring tea bath"}
    rows = [{"text": f"{words[c].split()[i % 3]} {prose(i, 4)}", "label": c} for i in range(60) for c in CLASSES]
    model = roberta().but(TINY | {"block.mixer.dropout": 0, "block.dropout": 0, "embed.dropout": 0, "dropout": 0})
    run = Run(
        data=LabelledTextData(
            path=write(tmp_path, "csv", rows), tokenizer=TrainBPE(vocab=400, special=ENCODER_TOKENS), context=64
        ),
        model=model,
        objective=Classification(),
        optimizer=AdamWConfig(lr=1e-2),
        trainer=TrainerConfig(steps=100, batch=24),
        out=tmp_path / "run",
    )
    result = train(run)
    assert result.log[-1]["held_out"]["accuracy"] > 0.9
    card = json.loads((result.checkpoint / "artifact.json").read_text())
    assert card["card"]["classes"] == list(CLASSES)
    assert card["model"]["classes"] == 3


def test_passages_of_files_that_text_holds_out_are_held_out():
    found = list(passages(0.2, 0))
    counts = Counter((p.package, p.split) for p in found)
    assert len(counts) == 16
    assert min(counts.values()) > 20
    assert ("asyncio", "train") in counts
    files = {split: {p.name.split(":")[0] for p in found if p.split == split} for split in ("train", "held_out")}
    corpus = Corpus.scan(TextData().sources, 0.2, None, 0)
    for document in read("stdlib"):
        if document.name in files["train"] | files["held_out"]:
            assert corpus.split.whole(content_hash(document.text)) == (document.name in files["held_out"])


def test_the_longest_texts_say_how_much_memory_is_needed(tokenizer, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "a,x\nb,y\n" * 30 + f"{'long ' * 20},x\n")
    data = LabelledTextData(path=str(file), context=64, held_out=0.0)
    dataset = data.prepare(tmp_path / "data", tokenizer)
    widest = max(batch.tokens.shape[1] for batch in dataset.evaluation("train", 4))
    assert dataset.longest(2).tokens.shape == (2, widest)
