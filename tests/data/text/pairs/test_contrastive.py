"""Pairs of texts: where they come from, what is held out, and batches that hold what the records hold."""

import json

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.data.text.documents import TrainBPE
from onefold.data.text.pairs.contrastive import (
    Columns,
    ContrastiveTextData,
    Docstrings,
    Neighbours,
    encode_texts,
    read_pairs,
)
from onefold.models.embedder import EmbedderConfig
from onefold.models.families import gpt2
from onefold.training.run import Run

DELIMITERS = (("[", "]"), ("{", "}"))


@pytest.fixture
def folder(tmp_path):
    """Twelve modules of three functions each; two docstrings occur twice."""
    place = tmp_path / "source"
    place.mkdir()
    for module in range(12):
        functions = [
            f'def f{module}_{n}(x):\n    """Return what {n} of module {module} makes of x."""\n    return x + {n}\n'
            for n in range(3)
        ]
        functions.append('def copy(x):\n    """Return the same thing once more."""\n    return x\n')
        (place / f"m{module}.py").write_text("\n\n".join(functions))
    return place


def data(folder, **changes) -> ContrastiveTextData:
    given = {"pairs": Docstrings(), "context": 24, "tokenizer": TrainBPE(vocab=300), "held_out": 0.25, **changes}
    return ContrastiveTextData(path=str(folder), **given)


def test_docstrings_and_their_functions_split_by_module(folder, tmp_path):
    dataset = data(folder).prepare(tmp_path / "out")
    names = {split: [name for name, *_ in dataset.texts(split)] for split in ("train", "held_out")}
    modules = {split: {name.split(":")[0] for name in found} for split, found in names.items()}
    assert len(modules["held_out"]) == 3
    assert not modules["train"] & modules["held_out"]
    assert dataset.facts["copies"] == 11  # of twelve equal docstrings one is left
    for _, first, second in dataset.texts("train"):
        assert first.startswith("Return")
        assert first not in second
        compile(second, "code", "exec")


def test_neighbours_are_whole_lines_and_no_passage_comes_twice(tmp_path):
    text = "\n\n".join(f"paragraph {n} " + "word " * (5 + n % 7) for n in range(40))
    (tmp_path / "text.txt").write_text(text)
    found = list(read_pairs(str(tmp_path / "text.txt"), Neighbours(characters=100)))
    passages = [passage for _, *both in found for passage in both]
    assert len(set(passages)) == len(passages) > 10
    assert "".join("".join(passages).split()) in "".join(text.split())
    assert all(100 <= len(passage) < 300 for passage in passages[:-1])


def test_columns_and_their_mistakes(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"question": f"q{n}", "answer": f"a{n}"}) + "\n" for n in range(20)))
    assert list(read_pairs(str(file), Columns()))[3] == ("pairs.jsonl:4", "q3", "a3")
    assert next(read_pairs(str(file), Columns(first="answer", second="question")))[1:] == ("a0", "q0")
    with pytest.raises(UserError, match="has question, answer, and no 'reply'"):
        next(read_pairs(str(file), Columns(second="reply")))
    with pytest.raises(UserError, match="is no table"):
        next(read_pairs(str(tmp_path), Columns()))
    file.write_text('{"question": "q", "answer": ""}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl:1: a pair needs two texts"):
        next(read_pairs(str(file), Columns()))


def test_batches_hold_the_texts_between_their_delimiters(folder, tmp_path):
    dataset = data(folder, delimiters=DELIMITERS).prepare(tmp_path / "out")
    tokenizer, seen = dataset.tokenizer, []
    with dataset.loader("train", 5, seed=0) as loader:
        for _ in range(-(-dataset.facts["train"]["pairs"] // 5)):
            batch = next(loader)
            for (tokens, lengths), around in zip(batch.sides(), DELIMITERS):
                for row, length in zip(tokens.tolist(), lengths.tolist()):
                    text = tokenizer.decode(row[:length])
                    assert (text[0], text[-1]) == tuple(sign for sign in around)
                    assert set(row[length:]) <= {tokenizer.pad}
            seen += [tokenizer.decode(row[1 : n - 1]) for row, n in zip(batch.tokens.tolist(), batch.lengths.tolist())]
    firsts = [first for _, first, _ in dataset.texts("train")]
    cut = {tokenizer.decode(ids[1:-1]) for ids in encode_texts(tokenizer, firsts, 24, DELIMITERS[0])}
    assert set(seen) == cut
    assert all(
        len(ids) <= 6 and ids[-1] == tokenizer.encode("]")[0] for ids in encode_texts(tokenizer, firsts, 6, ("", "]"))
    )


def test_processes_share_batches_and_reading_resumes(folder, tmp_path):
    dataset = data(folder).prepare(tmp_path / "out")
    with dataset.loader("train", 6, seed=3) as whole:
        batches = [next(whole) for _ in range(5)]
    for rank in range(2):
        with dataset.loader("train", 6, seed=3, rank=rank, world=2, state={"epoch": 0, "seen": 12}) as part:
            some = next(part).lengths.tolist()
            assert len(some) == 3
            assert not set(some) - set(batches[2].lengths.tolist())
    with dataset.loader("train", 6, seed=3, state={"epoch": 0, "seen": 18}) as later:
        assert next(later).tokens.equal(batches[3].tokens)
    evaluated = sum(len(batch.lengths) for batch in dataset.evaluation("held_out", 4))
    assert evaluated == dataset.facts["held_out"]["pairs"]
    with pytest.raises(UserError, match="compares different pairs, and there are"):
        dataset.loader("train", 1000, seed=0)


def test_chunks_are_as_narrow_as_their_texts(folder, tmp_path):
    dataset = data(folder).prepare(tmp_path / "out")
    with dataset.loader("train", 8, seed=0) as loader:
        batch = next(loader)
    parts = batch.split(3)
    assert [part.rows for part in parts] == [3, 3, 2]
    assert all(part.others.shape[1] == part.other_lengths.max() for part in parts)
    assert np.concatenate([part.lengths for part in parts]).tolist() == batch.lengths.tolist()


def test_the_model_is_told_its_delimiters_and_others_are_refused(folder, tmp_path):
    dataset = data(folder, delimiters=DELIMITERS).prepare(tmp_path / "out")
    trunk = gpt2().but({"width": 16, "depth": 1, "vocab": 290, "block.mixer.heads": 2})
    grown = dataset.fit(EmbedderConfig(trunk=trunk, pooling="last"), grow=True)
    assert grown.delimiters == DELIMITERS
    assert grown.trunk.vocab == 300
    with pytest.raises(UserError, match="need a model of kind embedder, not decoder"):
        dataset.fit(trunk, grow=True)
    run = Run(data=data(folder), model=EmbedderConfig(trunk=trunk, pooling="last"))
    assert Run.from_json(run.to_json()) == run
