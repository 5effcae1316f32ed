import json
import shutil

import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.dataset import Dataset
from onefold.data.text.documents import LoadTokenizer, Source, TextData, TrainBPE
from tests.data.conftest import prose

SMALL = {"context": 32, "tokenizer": TrainBPE(vocab=300)}


@pytest.fixture(scope="module")
def dataset(folder, tmp_path_factory) -> Dataset:
    return TextData(sources=str(folder), held_out=0.1, **SMALL).prepare(tmp_path_factory.mktemp("out"))


def spelled(dataset, batches):
    """The text that the counted targets of the batches spell, as a bag of tokens."""
    return sorted(t for b in batches for t in b.targets[b.weights > 0].tolist())


def test_files_are_held_out_whole(dataset, folder):
    train, held_out = ({d.name: d.text for d in dataset.text(s)} for s in ("train", "held_out"))
    assert len(held_out) == 3
    assert len(train) == 27
    assert not train.keys() & held_out.keys()
    for name, text in (train | held_out).items():
        assert (folder / name).read_text(encoding="utf-8") == text
    for split, texts in (("train", train), ("held_out", held_out)):
        assert dataset.bytes(split) == sum(len(t.encode()) for t in texts.values())
        assert dataset.facts[split]["documents"] == len(texts)
    assert dataset.facts["split"] == "files"
    assert len(dataset.facts["hash"]) == 16


@pytest.mark.parametrize("stride", [None, 8])
def test_evaluation_predicts_every_byte_of_every_document_once(dataset, stride):
    tokenizer = dataset.tokenizer
    expected = sorted(t for d in dataset.text("held_out") for t in [*tokenizer.encode(d.text), tokenizer.end])
    evaluation = dataset.evaluation("held_out", 4, stride)
    batches = list(evaluation)
    assert len(batches) == len(evaluation)
    assert spelled(dataset, batches) == expected
    assert spelled(dataset, evaluation) == expected  # again
    assert len(expected) == dataset.facts["held_out"]["tokens"]
    begun = sum(int(((b.tokens == tokenizer.start) & (b.weights > 0)).sum()) for b in batches)
    assert begun == 3 if stride is None else begun >= 3  # each first token is predicted from the start token


def test_the_tokenizer_never_saw_what_is_held_out(folder, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    config = TextData(sources=str(changed), held_out=0.1, **SMALL)
    first = config.prepare(tmp_path / "a")
    name = next(first.text("held_out")).name
    (changed / name).write_text((changed / name).read_text().replace(" ", "  "))  # the same hash: stays held out
    second = config.prepare(tmp_path / "b")
    assert {d.name for d in second.text("held_out")} == {d.name for d in first.text("held_out")}
    assert second.tokenizer.digest == first.tokenizer.digest
    assert second.facts["hash"] != first.facts["hash"]


def test_copies_never_lie_on_both_sides(tmp_path):
    for i in range(40):
        for copy in range(3):
            (tmp_path / "data" / f"c{copy}").mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / f"c{copy}" / f"{i}.txt").write_text(prose(i, 30) + "\n" * copy)
    dataset = TextData(sources=str(tmp_path / "data"), held_out=0.2, **SMALL).prepare(tmp_path / "out")
    sides = [{d.name.split("/")[1] for d in dataset.text(s)} for s in ("train", "held_out")]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 8


def test_a_single_book_loses_its_end(tmp_path, capsys):
    book = tmp_path / "book.txt"
    book.write_text("\n".join(prose(i, 12).replace("\n", " ") for i in range(300)))
    dataset = TextData(sources=str(book), **SMALL).prepare(tmp_path / "out")
    [train], [held_out] = (list(dataset.text(s)) for s in ("train", "held_out"))
    assert train.text + held_out.text == book.read_text()
    assert 0.03 < len(held_out.text) / len(book.read_text()) < 0.06
    assert "the end of each is held out" in capsys.readouterr().err


def test_own_validation(folder, tmp_path):
    own = tmp_path / "own.jsonl"
    copied = next((folder / "part0").iterdir())
    own.write_text("\n".join(json.dumps({"text": t}) for t in (prose(99, 50), copied.read_text() + "\n")))
    dataset = TextData(sources=str(folder), validation=str(own), **SMALL).prepare(tmp_path / "out")
    assert [d.name for d in dataset.text("held_out")] == ["own.jsonl:1", "own.jsonl:2"]
    names = {d.name for d in dataset.text("train")}
    assert len(names) == 29
    assert f"part0/{copied.name}" not in names  # else the evaluation would be on what was learned


def test_weighted_sources(folder, tmp_path):
    sources = [Source(path=str(folder / "part0"), weight=3), Source(path=str(folder / "part2"), weight=1)]
    dataset = TextData(sources=sources, held_out=0, **SMALL).prepare(tmp_path)
    plan = dataset.plan("train", 8, 0, 0)
    source = dataset._records["train"].strided("source").gather(plan.pieces.document)
    share = plan.pieces.length[source == 0].sum() / plan.pieces.length.sum()
    assert share == pytest.approx(0.75, abs=1e-3)
    with dataset.loader("train", 8, 0) as batches:
        assert next(batches).tokens.shape == (8, 32)


def test_preparing_again_finds_what_is_there(folder, tmp_path, capsys):
    config = TextData(sources=str(folder), **SMALL)
    config.prepare(tmp_path)
    [made] = tmp_path.iterdir()
    before = made.stat().st_mtime_ns
    config.but({"context": 16}).prepare(tmp_path)
    assert [f.stat().st_mtime_ns for f in tmp_path.iterdir()] == [before]
    config.but({"held_out": 0.2}).prepare(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert "corpus hash" in capsys.readouterr().err


def test_damage_is_named_and_mended_while_the_source_is_there(folder, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    config = TextData(sources=str(source), **SMALL)
    whole = config.prepare(tmp_path / "out")
    [made] = (tmp_path / "out").iterdir()
    expected = [d.text for d in whole.text("train")]
    file = made / "train" / "00000.arrow"
    for damage in (lambda b: b[:-7], lambda b: b[:100] + bytes([b[100] ^ 4]) + b[101:]):
        file.write_bytes(damage(file.read_bytes()))
        mended = config.prepare(tmp_path / "out")
        assert [d.text for d in mended.text("train")] == expected
        told = capsys.readouterr().err
        assert str(file) in told
        assert "preparing the data again" in told
    shutil.rmtree(source)
    again = config.prepare(tmp_path / "out")
    assert [d.text for d in again.text("train")] == expected
    assert "is gone; going on" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00000\.arrow.* is gone, so it cannot be prepared again"):
        config.prepare(tmp_path / "out")


def test_a_changed_source_is_prepared_again_unless_kept(folder, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    config = TextData(sources=str(source), **SMALL)
    first = config.prepare(tmp_path / "out").facts
    (source / "new.txt").write_text("something new")
    assert config.prepare(tmp_path / "out", keep=True).facts == first
    assert "going on with what was prepared" in capsys.readouterr().err
    assert config.prepare(tmp_path / "out").facts["documents"] == 31
    assert "the source has changed" in capsys.readouterr().err


def test_an_interrupted_preparation_leaves_nothing_half(folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onefold.data.text.dataset.Tokenizer.save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            TextData(sources=str(folder), **SMALL).prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []
    TextData(sources=str(folder), **SMALL).prepare(tmp_path)


def test_a_corpus_smaller_than_one_context_is_padded(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("only a few words\nand a second line of them")
    dataset = TextData(sources=str(tmp_path / "a.txt"), context=512, held_out=0).prepare(tmp_path / "out")
    assert "less than one context of 512" in capsys.readouterr().err
    with dataset.loader("train", 4, 0) as batches:
        batch = next(batches)
    assert batch.tokens.shape == (4, 512)
    assert int(batch.weights.sum()) == dataset.facts["train"]["tokens"]
    with pytest.raises(UserError, match="the held_out split of the data is empty: set held_out"):
        dataset.evaluation("held_out", 4)


def test_a_given_tokenizer_is_used(folder, tmp_path, tokenizer):
    given = TextData(sources=str(folder), **SMALL).prepare(tmp_path / "a", tokenizer)
    assert given.tokenizer.digest == tokenizer.digest
    tokenizer.save(tmp_path / "tokenizer")
    loading = TextData(sources=str(folder), tokenizer=LoadTokenizer(path=str(tmp_path / "tokenizer")))
    assert loading.prepare(tmp_path / "b").tokenizer.digest == tokenizer.digest


def test_large_corpora_train_the_tokenizer_on_a_sample(folder, tmp_path):
    config = TextData(sources=str(folder), tokenizer=TrainBPE(vocab=300, sample_bytes=5000))
    assert config.prepare(tmp_path).tokenizer.size > 256


def test_configuration():
    assert TextData().sources == (Source(path="stdlib"),)
    assert TextData(sources="a").sources == TextData(sources=["a"]).sources == (Source(path="a"),)
    assert TextData().but({"sources": ["a", {"path": "b", "field": "body"}]}).sources[1].field == "body"
    assert TextData().but({"sources.0.path": "c"}).sources == (Source(path="c"),)
    assert TextData.from_json(TextData(sources="x").to_json()) == TextData(sources="x")
    with pytest.raises(UserError, match="give every source a weight, or none"):
        TextData.from_dict({"sources": [{"path": "a", "weight": 1}, "b"]})
    with pytest.raises(UserError, match="did you mean context"):
        TextData.from_dict({"contxt": 5})
    with pytest.raises(UserError, match="held_out"):
        TextData.from_dict({"held_out": 5})


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(UserError, match="missing does not exist"):
        TextData(sources=str(tmp_path / "missing")).prepare(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is an empty folder"):
        TextData(sources=str(tmp_path / "empty")).prepare(tmp_path / "out")
    assert not any((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_every_process_reads_its_share(dataset):
    with dataset.loader("train", 6, 3) as whole:
        expected = [next(whole) for _ in range(9)]
    loaders = [dataset.loader("train", 6, 3, rank, 3) for rank in range(3)]
    for batch in expected:
        assert torch.equal(torch.cat([next(loader).tokens for loader in loaders]), batch.tokens)
    for loader in loaders:
        loader.close()


def test_a_store_is_read_as_it_was_made_whoever_reads_it(dataset, folder, tmp_path):
    """Tokens, split and tokenizer come from the store, whatever the reading run would have chosen, and no copy is
    made."""
    built = TextData(sources=str(folder), held_out=0.1, **SMALL).build(tmp_path / "text.store")
    reader = TextData(sources=str(tmp_path / "text.store"), context=16, tokenizer=TrainBPE(vocab=500), held_out=0.5)
    read = reader.prepare(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert read.facts == built.facts == dataset.facts
    assert read.tokenizer.digest == dataset.tokenizer.digest
    for split in ("train", "held_out"):
        assert [d.text for d in read.text(split)] == [d.text for d in dataset.text(split)]
    assert read.tokenizer.digest == reader.prepare(tmp_path / "run", dataset.tokenizer).tokenizer.digest


def test_a_store_is_refused_where_it_cannot_serve(folder, tmp_path):
    store = tmp_path / "text.store"
    config = TextData(sources=str(folder), **SMALL)
    built = config.build(store)
    with pytest.raises(UserError, match="exists already"):
        config.build(store)
    with pytest.raises(UserError, match="give it as the only source"):
        TextData(sources=[str(store), str(folder)]).prepare(tmp_path / "run")
    other = TextData(sources=str(folder), tokenizer=TrainBPE(vocab=280)).build(tmp_path / "other.store").tokenizer
    with pytest.raises(UserError, match="another tokenizer than the model's"):
        TextData(sources=str(store)).prepare(tmp_path / "run", other)
    assert TextData(sources=str(store)).prepare(tmp_path / "run", built.tokenizer).facts == built.facts
    (store / "data.json").write_text((store / "data.json").read_text().replace('"layout": 2', '"layout": 1'))
    with pytest.raises(UserError, match="another version of Onefold: build it again"):
        TextData(sources=str(store)).prepare(tmp_path / "run")
