import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.denoising import DenoisingTextData
from onefold.data.text.pairs.mixture import MixtureData, MixtureDataset
from onefold.data.text.pairs.text_pairs import TextPairsData
from onefold.data.text.tokenizers.tokenizer import T5_TOKENS
from onefold.models.seq2seq_families import t5

TOKENIZER = {"kind": "bpe", "vocab": 400, "special": T5_TOKENS, "sentinels": 12}
TASKS = {"copy: ": (lambda text: text, 300), "upper: ": (str.upper, 90)}


@pytest.fixture(scope="module")
def parts(folder, tmp_path_factory):
    """Two tasks of 300 and 90 rows, and documents, as the parts of a mixture."""
    root = tmp_path_factory.mktemp("tasks")
    found = [{"data": DenoisingTextData(sources=str(folder), context=48, tokenizer=TOKENIZER, held_out=0.1)}]
    for prefix, (task, count) in TASKS.items():
        words = [f"token {i} of {count}" for i in range(count)]
        file = root / f"{prefix[:-2]}.jsonl"
        file.write_text("".join(json.dumps({"input": w, "target": task(w)}) + "\n" for w in words))
        found.append({"data": TextPairsData(path=(str(file),), prefix=prefix, context=48, held_out=0.1)})
    return found


@pytest.fixture(scope="module")
def prepare(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")

    def prepare(weights=(None, None, None), cap=None) -> MixtureDataset:
        weighted = [part | {"weight": weight} for part, weight in zip(parts, weights)]
        return MixtureData(parts=weighted, cap=cap).prepare(out)

    return prepare


def epoch(dataset, number, rows=8, seed=0, rank=0, world=1):
    """The batches of one epoch."""
    with dataset.loader("train", rows, seed, rank, world, {"epoch": number, "seen": 0}) as loader:
        return [next(loader) for _ in range(dataset.plan("train", rows, seed, number).batches)]


def told(dataset, batches):
    """(what is read, what is said) of every row, as text"""
    decode = dataset.tokenizer.decode
    for batch in batches:
        for source, targets, weights in zip(batch.source, batch.targets, batch.weights):
            yield decode(source, special=True).replace("<pad>", ""), decode(targets[weights > 0], special=True)


def task(read: str) -> str:
    return next((prefix for prefix in TASKS if read.startswith(prefix)), "restore")


def test_every_task_is_there_as_often_as_it_has_rows(prepare):
    dataset = prepare()
    rows = list(told(dataset, epoch(dataset, 0)))
    documents = dataset.parts[0].examples("train", 0, 0).count
    found, wanted = (
        Counter(task(read) for read, _ in rows),
        Counter({"copy: ": 270, "upper: ": 81, "restore": documents}),
    )
    assert sum((found - wanted).values()) < 8  # rows that fill the last batch
    assert not wanted - found
    for read, said in rows:
        if prefix := task(read) if task(read) in TASKS else "":
            assert said == TASKS[prefix][0](read.removeprefix(prefix).removesuffix("</s>")) + "</s>"
        else:
            assert read.count("<extra_id_") == said.count("<extra_id_") > 0
    everything = [read for read, _ in rows if task(read) == "copy: "]
    assert len(set(everything)) == 270


def test_shares_hold_in_every_stretch(prepare):
    for dataset, wanted in (
        (prepare(weights=(2, 1, 1)), {"restore": 0.5, "copy: ": 0.25, "upper: ": 0.25}),
        (prepare(cap=50), {"restore": 1 / 3, "copy: ": 1 / 3, "upper: ": 1 / 3}),
    ):
        rows = [task(read) for read, _ in told(dataset, epoch(dataset, 1))]
        for stretch in (rows, rows[: len(rows) // 2], rows[:48]):
            found = Counter(stretch)
            assert {name: found[name] for name in wanted} == pytest.approx(
                {name: share * len(stretch) for name, share in wanted.items()}, abs=3
            )


def test_a_part_goes_on_where_it_ended_in_the_epoch_before(prepare):
    dataset = prepare(cap=50)
    rows = [read for number in range(6) for read, _ in told(dataset, epoch(dataset, number, rows=1))]
    copies = [read for read in rows if task(read) == "copy: "]
    assert len(copies) == 300
    assert len(set(copies[:270])) == 270
    assert set(copies[270:]) < set(copies[:270])
    upper = [read for read in rows if task(read) == "upper: "]
    assert [len(set(upper[a:b])) for a, b in pairwise((0, 81, 162, 243))] == [81, 81, 81]


def test_processes_and_resuming_change_nothing(prepare):
    dataset = prepare()
    expected = epoch(dataset, 2, rows=6, seed=5)
    shares = [epoch(dataset, 2, 6, 5, rank, 3) for rank in range(3)]
    for whole, *some in zip(expected, *shares):
        assert list(told(dataset, [whole])) == list(told(dataset, some))
    with dataset.loader("train", 6, 5, state={"epoch": 2, "seen": 12}) as loader:
        assert torch.equal(next(loader).source, expected[2].source)
    assert list(told(dataset, epoch(dataset, 3, 6, 5))) != list(told(dataset, expected))


def test_evaluations_are_always_the_same_and_hold_everything_once(prepare):
    dataset = prepare()
    once = list(told(dataset, dataset.evaluation("held_out", 4)))
    assert once == list(told(dataset, dataset.evaluation("held_out", 4)))
    assert once == list(told(dataset, dataset.evaluation("held_out", 7)))
    assert Counter(task(read) for read, _ in once) == {
        "restore": dataset.parts[0].examples("held_out", None, 0).count,
        "copy: ": 30,
        "upper: ": 9,
    }
    kinds = np.array([task(read) == "copy: " for read, _ in once])
    assert kinds[: len(kinds) // 2].sum() == pytest.approx(15, abs=2)


def test_all_parts_have_the_first_ones_tokenizer(prepare):
    dataset = prepare()
    assert len({part.tokenizer.digest for part in dataset.parts}) == 1
    assert dataset.fit(t5().but({"vocab": 400}), grow=False).start == dataset.tokenizer.pad
    with pytest.raises(UserError, match="is longer than"):
        dataset.fit(t5().but({"vocab": 400, "context": 40}), grow=False)


def test_what_does_not_go_together(parts):
    with pytest.raises(UserError, match="give every part a weight, or none"):
        MixtureData.from_dict({"parts": [parts[0], parts[1] | {"weight": 1.0}]})
    with pytest.raises(UserError, match="`cap` decides nothing"):
        MixtureData.from_dict({"parts": [part | {"weight": 1.0} for part in parts], "cap": 5})
    with pytest.raises(UserError, match="parts"):
        MixtureData.from_dict({"parts": []})
