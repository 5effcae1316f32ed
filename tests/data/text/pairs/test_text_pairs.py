"""Pairs of texts as training data: what is kept, who is held out, what a batch says, and resuming."""

import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.pairs.synthetic import pairs
from onefold.data.text.pairs.text_pairs import TextPairsData
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, T5_TOKENS
from onefold.infer.seq2seq import Seq2SeqModel
from onefold.interop.loaded import Loaded
from onefold.models.seq2seq_families import transformer


@pytest.fixture
def files(tmp_path):
    found = list(pairs(120))
    for side, name in enumerate(("a.src", "a.tgt")):
        (tmp_path / name).write_text("".join(pair[side] + "\n" for pair in found))
    return f"{tmp_path}/a.src,{tmp_path}/a.tgt"


def make(files, **settings):
    tokenizer = {"kind": "bpe", "vocab": 400, "special": list(T5_TOKENS)}
    return TextPairsData.from_dict({"path": files, "tokenizer": tokenizer, "context": 96, "held_out": 0.1, **settings})


def test_batches_spell_the_pairs(files, tmp_path):
    data = make(files).prepare(tmp_path / "data")
    tokenizer, seen = data.tokenizer, set()
    for batch in data.evaluation("train", 4):
        assert batch.slots <= 4 <= batch.rows or batch.slots == batch.rows
        assert max(batch.source.shape[1], batch.tokens.shape[1]) * batch.rows <= 4 * 96
        assert (batch.tokens[:, 0] == tokenizer.pad).all()
        for row in range(batch.rows):
            said = batch.weights[row].bool()
            read = batch.source[row][batch.source_segments[row] == 0] if batch.source_segments is not None else None
            read = batch.source[row] if read is None else read
            assert read[-1] == batch.targets[row][said][-1] == tokenizer.end
            assert torch.equal(batch.tokens[row, 1:][said[1:]], batch.targets[row, :-1][said[1:]])
            seen.add((tokenizer.decode(read), tokenizer.decode(batch.targets[row][said])))
    assert seen == set(data.texts("train"))
    assert len(seen) == data.facts["train"]["pairs"] >= 100
    assert seen.isdisjoint(data.texts("held_out"))
    assert set(pairs(120)) == seen | set(data.texts("held_out"))


def test_a_model_reads_what_it_was_trained_on(files, tmp_path):
    """Also with a tokenizer that puts nothing around texts."""
    for n, special in enumerate((("<|endoftext|>",), T5_TOKENS, ENCODER_TOKENS)):
        data = make(files, tokenizer={"kind": "bpe", "vocab": 400, "special": list(special)}).prepare(tmp_path / str(n))
        config = transformer("base").but({"width": 8, "encoder.depth": 1, "decoder.depth": 1, "context": 96})
        config = data.fit(config, grow=True)
        model = Seq2SeqModel(Loaded(config, config.build(), data.tokenizer))
        text = next(data.texts("held_out"))[0]
        rows = [row.tolist() for batch in data.evaluation("held_out", 1) for row in batch.source]
        ids = model.ids(text)
        assert any(
            row[: len(ids)] == ids and row[len(ids) :] == [data.processor.pad or 0] * (len(row) - len(ids))
            for row in rows
        )


def test_long_pairs_and_empty_sides_are_left_out_and_counted(tmp_path, capsys):
    (tmp_path / "t.tsv").write_text("source\ttarget\n" + "a b\tc d\n" * 20 + "\tno\n" + "x " * 60 + "\tlong\n")
    data = make(f"{tmp_path}/t.tsv", context=32, held_out=0.0).prepare(tmp_path / "data")
    assert data.facts["train"]["pairs"] == 20
    said = capsys.readouterr().err
    assert "1 left out with nothing on one side" in said
    assert "1 left out as longer than 32 tokens" in said
    with pytest.raises(UserError, match="held_out split of the data is empty"):
        data.evaluation("held_out", 4)


def test_what_is_held_out_is_not_learned_from(files, tmp_path):
    """A source of the validation files is nowhere else, whatever it is translated to."""
    source, target = next(iter(pairs(1)))
    (tmp_path / "v.tsv").write_text(f"source\ttarget\n{source}\tanother translation\n")
    data = make(files, validation=f"{tmp_path}/v.tsv").prepare(tmp_path / "data")
    assert list(data.texts("held_out")) == [(source, "another translation")]
    assert (source, target) not in set(data.texts("train"))
    assert data.facts["train"]["pairs"] == 119


def test_a_loader_goes_on_where_it_stood_with_any_number_of_processes(files, tmp_path):
    data = make(files).prepare(tmp_path / "data")
    with data.loader("train", 4, seed=5) as loader:
        whole = [next(loader) for _ in range(9)]
    with data.loader("train", 4, seed=5) as loader:
        for _ in range(5):
            next(loader)
        state = loader.state()
    parts = [data.loader("train", 4, 5, rank, 2, state) for rank in (0, 1)]
    for batch in whole[5:]:
        halves = [next(part) for part in parts]
        assert [half.slots for half in halves] == [2, 2]
        rows = [row[row != data.tokenizer.pad].tolist() for half in halves for row in half.source]
        assert rows == [row[row != data.tokenizer.pad].tolist() for row in batch.source]
    for part in parts:
        part.close()


def test_micro_batches_of_a_slot_hold_no_more_than_a_row_of_tokens(files, tmp_path):
    data = make(files).prepare(tmp_path / "data")
    with data.loader("train", 4, seed=0) as loader:
        batch = next(loader)
    micros = batch.split(1)
    assert len(micros) == 4
    assert sum(micro.rows for micro in micros) == batch.rows
    longest = max(batch.source.shape[1], batch.tokens.shape[1])
    assert all((micro.rows - 1) * longest <= 96 for micro in micros)


def test_a_prefix_tells_the_task_and_a_model_of_one_text_is_refused(files, tmp_path):
    from onefold.models import families

    data = make(files, prefix="translate: ").prepare(tmp_path / "data")
    assert all(source.startswith("translate: ") for source, _ in data.texts("train"))
    with pytest.raises(UserError, match="reads one text and writes another"):
        data.fit(families.gpt2(), grow=False)
