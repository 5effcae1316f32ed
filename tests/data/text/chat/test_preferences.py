"""Tables of preferences as people have them, what becomes of them, and what is said of mistakes in them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.chat.answers import encode_answer, read_answers
from onefold.data.text.chat.messages import with_chat
from onefold.data.text.chat.preferences import PreferenceData
from onefold.data.text.tokenizers.tokenizer import Tokenizer

SAID = ("user", "hi"), ("assistant", "a"), ("assistant", "b")
USER, YES, NO = ({"role": role, "content": text} for role, text in SAID)
TURNS = [USER], ([YES], [NO])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["what is it that people like"], 270)


def write(tmp_path, rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


SHAPES = {
    "text": ({"prompt": "hi", "chosen": "a", "rejected": "b"}, ("hi", ("a", "b"))),
    "messages": ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, TURNS),
    "messages and text": ({"messages": [USER], "chosen": "a", "rejected": "b"}, TURNS),
    "whole conversations": ({"chosen": [USER, YES], "rejected": [USER, NO]}, TURNS),
    "UltraFeedback": ({"prompt": "hi", "chosen": [USER, YES], "rejected": [USER, NO]}, TURNS),
    "HH-RLHF": ({"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b"}, TURNS),
    "HH-RLHF with a prompt": ({"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": "a", "rejected": "b"}, TURNS),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_in_which_pairs_come(tmp_path, shape):
    row, expected = SHAPES[shape]
    (found,) = read_answers(write(tmp_path, [row]), "pairs")
    assert (found.prompt, found.answers) == expected


def test_half_characters_are_no_text(tmp_path):
    half = [{**YES, "content": "a \ud83d"}]
    (found,) = read_answers(write(tmp_path, [{"prompt": "hi \ud83d", "chosen": half, "rejected": [NO]}]), "pairs")
    assert (found.prompt[0]["content"], found.answers[0][0]["content"]) == ("hi ?", "a ?")


def test_parquet_and_other_names(tmp_path):
    table = {"q": ["hi"], "good": ["a"], "bad": ["b"], "by": [0.5]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    names = {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": "by"}
    (found,) = read_answers(tmp_path / "rows.parquet", "pairs", names)
    assert (found.prompt, found.answers, found.margin) == ("hi", ("a", "b"), 0.5)
    pq.write_table(pa.table({"prompt": [[USER]], "chosen": [[YES]], "rejected": [[NO]]}), tmp_path / "turns.parquet")
    (found,) = read_answers(tmp_path / "turns.parquet", "pairs")
    assert (found.prompt, found.answers) == TURNS


MISTAKES = {
    "chosen is empty": {"prompt": "p", "chosen": " ", "rejected": "b"},
    "has prompt, chosen, and no 'rejected'": {"prompt": "p", "chosen": "a"},
    "messages 1 and 2 are both of the user": {"prompt": [USER, USER], "chosen": "a", "rejected": "b"},
    "has no prompt": {"chosen": "a", "rejected": "b"},
    "rejected must be text or a list of messages, not int": {"prompt": "p", "chosen": "a", "rejected": 1},
    "each message needs a role": {"prompt": [{"from": "human"}], "chosen": "a", "rejected": "b"},
    "the margin is nan": {"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")},
    "margin is no number": {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "much"},
    "chosen and rejected are the same": {"prompt": "p", "chosen": "a", "rejected": "a"},
    "rows.jsonl:2: chosen and rejected are the same": {"chosen": [USER, YES], "rejected": [USER, YES]},
}


@pytest.mark.parametrize("problem", MISTAKES)
def test_mistakes_are_told_with_file_and_line(tmp_path, tokenizer, problem):
    fine = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.0}
    file = write(tmp_path, [fine, MISTAKES[problem]])
    with pytest.raises(UserError, match=problem) as told:
        PreferenceData(path=str(file)).prepare(tmp_path / "data", tokenizer)
    assert f"{file}:2" in str(told.value)


def test_labels_are_yes_or_no(tmp_path):
    rows = [{"prompt": "p", "completion": "a", "label": label} for label in (True, 0, "true")]
    assert [row.liked for row in read_answers(write(tmp_path, rows), "labels")] == [True, False, True]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: a label is true or false, not 'good'"):
        list(read_answers(write(tmp_path, [{"prompt": "p", "completion": "a", "label": "good"}]), "labels"))


def test_bad_rows_can_be_left_out(tmp_path, tokenizer, capsys):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "ab"[i % 2]} for i in range(8)]
    data = PreferenceData(path=str(write(tmp_path, rows)), skip_bad=True, held_out=0)
    assert data.prepare(tmp_path / "data", tokenizer).size("train") == 4
    assert "4 left out, the first:" in (said := capsys.readouterr().err)
    assert "rows.jsonl:1: chosen and rejected are the same" in said


def test_bad_rows_at_the_end_are_told_too(tmp_path, tokenizer):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b" if i < 4 else "a"} for i in range(6)]
    data = PreferenceData(path=str(write(tmp_path, rows)), skip_bad=True, held_out=0)
    assert data.prepare(tmp_path / "data", tokenizer).facts["bad"] == 2


def test_what_counts_is_the_answer_with_its_end(tokenizer):
    ids, learned = encode_answer("what is", " it", tokenizer)
    assert [i for i, n in zip(ids, learned) if n] == [*tokenizer.encode(" it"), tokenizer.end]
    chat = with_chat(tokenizer)
    before = [USER, YES, USER]
    ids, learned = encode_answer(before, [NO], chat)
    said = [i for i, n in zip(ids, learned) if n]
    assert chat.decode(said) == "b"
    assert said[-1] in chat.stops  # and what the assistant said before is not learned again


def test_batches_hold_both_answers_and_where_they_stand(tmp_path, tokenizer):
    words = ["what", "is", "it", "that", "people", "like"]
    rows = [{"prompt": w, "chosen": f" {w} is", "rejected": f" {w}" * (i + 2)} for i, w in enumerate(words)]
    dataset = PreferenceData(path=str(write(tmp_path, rows)), held_out=0).prepare(tmp_path / "data", tokenizer)
    batch = dataset.rows("train", np.arange(6))
    assert batch.tokens.shape[2] % 8 == 0
    for side, name in enumerate(("chosen", "rejected")):
        tokens, places, targets, weights = batch.side(side)
        for n, row in enumerate(rows):
            real = weights[n] > 0
            assert tokenizer.decode(targets[n][real].tolist()) == row[name]
            assert torch.equal(tokens[n][places[n][real] + 1], targets[n][real])
            assert batch.lengths[n, side] == places[n][real].max() + 2
    assert batch.margins is None
    assert batch.liked is None
    assert batch.reference is None
    part = batch.take(slice(2, 4))
    assert torch.equal(part.targets, batch.targets[2:4])


def test_answers_to_other_prompts_stand_beside_labelled_ones(tmp_path, tokenizer):
    rows = [{"prompt": f"{i // 2}", "completion": f" {chr(97 + i)}", "label": i % 2} for i in range(12)]
    data = PreferenceData(path=str(write(tmp_path, rows)), task="labels", held_out=0)
    dataset = data.prepare(tmp_path / "data", tokenizer)
    owner = {row["completion"]: row["prompt"] for row in rows}
    found = list(dataset.texts("train"))
    assert len(found) == 12
    assert all(owner[own] == prompt != owner[other] for prompt, own, other in found)
    batch = next(iter(dataset.evaluation("train", 12)))
    assert batch.liked.sum() == 6


def test_equal_prompts_are_in_one_split_and_long_rows_are_counted(tmp_path, tokenizer, capsys):
    rows = [{"prompt": f"p{i % 20}", "chosen": f" {i}", "rejected": f" {i}" * (60 if i == 7 else 2)} for i in range(60)]
    data = PreferenceData(path=str(write(tmp_path, rows)), context=64, held_out=0.2)
    dataset = data.prepare(tmp_path / "data", tokenizer)
    split = {prompt: "held_out" for prompt, _, _ in dataset.texts("held_out")}
    assert dataset.size("held_out") > 5
    assert not any(prompt in split for prompt, _, _ in dataset.texts("train"))
    assert "1 left out as longer than 64 tokens" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"longer than data\.context=4"):
        data.but({"context": 4}).prepare(tmp_path / "data", tokenizer)


def test_what_a_reference_says_is_kept_under_its_hash(tmp_path, tokenizer):
    rows = [{"prompt": f"p{i}", "chosen": f" {i}", "rejected": f" {i}{i}"} for i in range(11)]
    data = PreferenceData(path=str(write(tmp_path, rows)), held_out=0.2)
    dataset = data.prepare(tmp_path / "data", tokenizer)
    assert not dataset.know("abc")
    dataset.ask("abc", lambda batch: batch.lengths.float(), 3)
    again = data.prepare(tmp_path / "data", tokenizer)
    assert not again.know("def")
    assert again.know("abc")
    for batch in again.evaluation("train", 4):
        assert torch.equal(batch.reference, batch.lengths.float())
    with pytest.raises(UserError, match=r"gives an answer of rows\.jsonl:.* no probability"):
        dataset.ask("ghi", lambda batch: torch.full((batch.rows, 2), torch.nan), 3)
