"""What is known of texts, task by task: read from every kind of file, and asked of the right tokens."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onefold.core.batch import UNASKED
from onefold.core.errors import UserError
from onefold.data.text.labelled import wordnet
from onefold.data.text.labelled.text import LabelledTextData
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, Tokenizer
from onefold.models.encoder_families import roberta
from onefold.models.families import gpt2
from tests.data.conftest import prose

SENTENCES = [
    (["John", "Smith", "lives", "in", "Paris", "."], ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]),
    (["Nothing", "here"], ["O", "O"]),
    (["Ünïcödé", "漢字", "works"], ["B-LOC", "I-LOC", "O"]),
]
CONTEXT = "The tower was built by Gustave in 1889. " + prose(3, 60) + " It stands in Paris."
QUESTIONS = [("Who built it?", ["Gustave"], [23]), ("Where?", ["Paris"], [len(CONTEXT) - 6]), ("Why?", [], [])]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([prose(i, 200) for i in range(9)], 300, ENCODER_TOKENS)


def lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def prepared(path, tokenizer, tmp_path, task, **settings):
    data = LabelledTextData(path=path, task=task, held_out=0, **settings)
    return data.prepare(tmp_path / "out", tokenizer)


def batches(dataset, rows=4):
    return list(dataset.evaluation("train", rows))


def tag_files(folder):
    rows = [{"tokens": words, "ner_tags": tags} for words, tags in SENTENCES]
    names = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    yield lines(folder / "rows.jsonl", rows)
    conll = "-DOCSTART- -X- O O\n\n" + "\n\n".join(
        "\n".join(f"{word} NN {tag}" for word, tag in zip(*sentence)) for sentence in SENTENCES
    )
    (folder / "rows.conll").write_text(conll + "\n")
    yield str(folder / "rows.conll")
    tabs = "\n\n".join("\n".join("\t".join(pair) for pair in zip(*sentence)) for sentence in SENTENCES)
    (folder / "rows.bio").write_text(tabs)
    yield str(folder / "rows.bio")
    table = ["text,tags", *(f'"{" ".join(words)}",{" ".join(tags)}' for words, tags in SENTENCES)]
    (folder / "rows.csv").write_text("\n".join(table))
    yield str(folder / "rows.csv")
    numbers = [{**row, "ner_tags": [names.index(tag) for tag in row["ner_tags"]]} for row in rows]
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}
    meta = {b"huggingface": json.dumps({"info": {"features": {"ner_tags": feature}}}).encode()}
    pq.write_table(pa.Table.from_pylist(numbers).replace_schema_metadata(meta), folder / "rows.parquet")
    yield str(folder / "rows.parquet")


def test_tags_are_asked_of_first_pieces_whatever_the_file(tokenizer, tmp_path):
    for path in tag_files(tmp_path):
        dataset = prepared(path, tokenizer, tmp_path, "token")
        ours = path.endswith("parquet")  # a source's own order of its classes stays
        assert dataset.classes == tuple(
            ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"] if ours else ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
        )
        expected = {" ".join(words): list(map(list, zip(words, tags))) for words, tags in SENTENCES}
        assert {row.text: row.label for row in dataset.examples("train")} == expected
        [batch] = batches(dataset)
        assert batch.targets.dtype == torch.int64
        padding = batch.segments == 1
        assert (batch.targets[padding] == UNASKED).all()
        for tokens, targets, inside in zip(batch.tokens, batch.targets, ~padding):
            text = tokenizer.decode(tokens[inside].tolist())
            asked = [i for i, target in enumerate(targets.tolist()) if target != UNASKED]
            assert [dataset.classes[targets[i]] for i in asked] == [tag for _, tag in expected[text]]
            before = [tokenizer.decode(tokens[1:i].tolist()) for i in asked]  # up to where each word begins
            words = [word for word, _ in expected[text]]
            assert [b.rstrip() for b in before] == [" ".join(words[:n]) for n in range(len(words))]


def test_long_texts_with_tags_are_read_in_windows(tokenizer, tmp_path):
    words = prose(5, 120).split()
    path = lines(tmp_path / "rows.jsonl", [{"words": words, "tags": ["O" if len(w) < 5 else "X" for w in words]}])
    dataset = prepared(path, tokenizer, tmp_path, "token", context=32, overlap=8)
    assert dataset.facts["train"]["texts"] == 1
    assert dataset.size("train") > 3
    asked = torch.cat([batch.targets[batch.targets != UNASKED] for batch in batches(dataset)])
    assert len(asked) == len(words)
    assert (asked == 1).sum() == sum(len(w) >= 5 for w in words)
    assert len(list(dataset.examples("train"))) == 1


def answer_files(folder):
    ids = [f"q{i}" for i in range(3)]
    shapes = [
        lambda texts, starts: {"text": texts, "answer_start": starts},
        lambda texts, starts: [{"text": t, "answer_start": s} for t, s in zip(texts, starts)],
        lambda texts, starts: texts,
    ]
    for n, shape in enumerate(shapes):
        rows = [{"question": q, "context": CONTEXT, "answers": shape(t, s)} for q, t, s in QUESTIONS]
        yield lines(folder / f"{n}.jsonl", rows)
    asked = [
        {"id": i, "question": q, "answers": shapes[1](t, s), "is_impossible": not t}
        for i, (q, t, s) in zip(ids, QUESTIONS)
    ]
    squad = {"data": [{"title": "Tower", "paragraphs": [{"context": CONTEXT, "qas": asked}]}]}
    (folder / "squad.json").write_text(json.dumps(squad))
    yield str(folder / "squad.json")
    table = ["question,context,answer", *(f'{q},"{CONTEXT}",{"".join(t)}' for q, t, _ in QUESTIONS)]
    (folder / "rows.csv").write_text("\n".join(table))
    yield str(folder / "rows.csv")


def test_answers_are_where_they_stand_in_the_windows_that_hold_them(tokenizer, tmp_path):
    for path in answer_files(tmp_path):
        dataset = prepared(path, tokenizer, tmp_path, "span", context=64, overlap=16)
        assert dataset.size("train") > dataset.facts["train"]["texts"] == 3
        found = {question: set() for question, _, _ in QUESTIONS}
        for batch in batches(dataset):
            for tokens, (first, last) in zip(batch.tokens, batch.targets.tolist()):
                [question] = [q for q in found if tokenizer.decode(tokens[1:20].tolist()).startswith(q)]
                assert 0 <= first <= last
                answer = tokenizer.decode(tokens[first : last + 1].tolist()).strip() if last else ""
                found[question].add(answer)
        for question, answers, _ in QUESTIONS:
            assert found[question] == {"", *answers}  # windows without it have none


def test_numbers_are_in_deviations_of_those_learned(tokenizer, tmp_path):
    path = tmp_path / "rows.csv"
    values = np.random.default_rng(0).normal(1e5, 2e3, 40)
    path.write_text("text,score\n" + "\n".join(f'"{prose(i, 3)}",{v}' for i, v in enumerate(values)))
    data = LabelledTextData(path=str(path), task="regression", label="score", held_out=0.2)
    dataset = data.prepare(tmp_path / "out", tokenizer)
    learned = [row.label for row in dataset.examples("train")]
    assert dataset.facts["card"]["numbers"] == pytest.approx([np.mean(learned), np.std(learned)])
    asked = torch.cat([batch.targets for batch in batches(dataset)])
    assert asked.shape == (len(learned), 1)
    assert (float(asked.mean()), float(asked.std(correction=0))) == pytest.approx((0, 1), abs=1e-3)
    config = dataset.fit(roberta(), grow=True)
    assert (config.classes, config.task) == (1, "sequence")


def test_models_are_made_for_the_task(tokenizer, tmp_path):
    tags = prepared(next(tag_files(tmp_path)), tokenizer, tmp_path, "token", context=64)
    config = tags.fit(roberta(), grow=True)
    assert (config.task, config.classes, config.pooler, config.masked) == ("token", 5, False, None)
    spans = prepared(next(answer_files(tmp_path)), tokenizer, tmp_path, "span", context=64)
    assert (spans.fit(roberta(), grow=True).task, spans.classes) == ("span", ("start", "end"))
    with pytest.raises(UserError, match="a model that tags words, not a decoder"):
        tags.fit(gpt2(), grow=True)


def words(n, tags):
    return {"tokens": ["a"] * n, "tags": tags}


def asks(**changes):
    return {"question": "Who?", "context": "It was Ann.", "answers": ["Ann"]} | changes


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("token", [words(2, ["O", "O"]), words(2, ["O"])], r"rows\.jsonl:2: 2 words and 1 tags"),
        ("token", [words(2, ["O", None])], r"rows\.jsonl:1: no tag at place 2"),
        ("token", [words(0, [])], r"rows\.jsonl:1: no words"),
        ("token", [{"tokens": ["a"]}], r"which column holds the tags \(task=token\) with data\.label"),
        ("span", [asks(answers=["Bob"])], r"rows\.jsonl:1: the answer 'Bob' does not stand in its context"),
        (
            "span",
            [asks(answers=[{"text": "Ann", "answer_start": 3}])],
            r"rows\.jsonl:1: the answer 'Ann' does not stand in its context at character 3",
        ),
        ("span", [asks(question="why " * 99)], r"rows\.jsonl:1: the question leaves no room"),
        ("span", [asks(context="")], r"rows\.jsonl:1: no context"),
        ("span", [{"question": "a", "text": "b"}], "which column holds the answers"),
        (
            "regression",
            [{"text": "a", "label": "1.5"}, {"text": "b", "label": "high"}],
            r"jsonl:2: 'high' is no number",
        ),
        ("regression", [{"text": "a", "label": float("nan")}], r"jsonl:1: nan is no number"),
    ],
)
def test_mistakes_are_told_with_their_row(task, rows, message, tokenizer, tmp_path):
    path = lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=message):
        prepared(path, tokenizer, tmp_path, task, context=64)


def test_mistakes_in_other_files(tokenizer, tmp_path):
    (tmp_path / "rows.conll").write_text("a O\nb\n")
    with pytest.raises(UserError, match=r"rows\.conll:2: no word and tag: 'b'"):
        prepared(str(tmp_path / "rows.conll"), tokenizer, tmp_path, "token")
    (tmp_path / "rows.md").write_text("a O")
    with pytest.raises(UserError, match=r"rows\.md is no table: give a file .* a CoNLL file"):
        prepared(str(tmp_path / "rows.md"), tokenizer, tmp_path, "token")
    (tmp_path / "a.json").write_text('{"data": [{"title": 1}]}')
    with pytest.raises(UserError, match=r"a\.json is not as SQuAD's files are: no 'paragraphs'"):
        prepared(str(tmp_path / "a.json"), tokenizer, tmp_path, "span")
    with pytest.raises(UserError, match="gone does not exist"):
        prepared(str(tmp_path / "gone"), tokenizer, tmp_path, "token")


def test_a_label_that_only_validation_has(tokenizer, tmp_path):
    train = lines(tmp_path / "train.jsonl", [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(4)])
    test = lines(tmp_path / "test.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": "c"}])
    with pytest.raises(UserError, match=r"test\.jsonl:2: no model learned the label 'c'; known are a, b"):
        prepared(train, tokenizer, tmp_path, "sequence", validation=test)


SENSES = """  1 This software and database is being provided to you, the LICENSEE, by
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 ~ 04424418 n 0000 | that which is perceived to exist
00017222 20 n 03 plant 0 flora 0 plant_life 0 001 @ 00004475 n 0000 | a living organism lacking the power of locomotion
"""


def test_wordnet(tokenizer, tmp_path):
    (tmp_path / "data.noun").write_text(SENSES)
    (tmp_path / "data.adv").write_text("00001837 02 r 01 a_cappella 0 000 | without musical accompaniment\n")
    dataset = prepared(str(tmp_path), tokenizer, tmp_path, "sequence", context=64)
    assert dataset.classes == ("adv.all", "noun.Tops", "noun.plant")
    rows = list(dataset.examples("train"))
    assert (rows[0].text, rows[0].label, rows[0].name) == (
        "that which is perceived to exist",
        "noun.Tops",
        "data.noun:2",
    )
    (tmp_path / "data.verb").write_text("00001 99 v 01 x 0 000 | y\n")
    with pytest.raises(UserError, match=r"data\.verb:1: no sense"):
        prepared(str(tmp_path), tokenizer, tmp_path, "sequence", context=32)


@pytest.mark.skipif(wordnet.folder("wordnet") is not None, reason="WordNet is installed")
def test_wordnet_that_is_not_there(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"share/wordnet \(of Debian's wordnet-base\) does not exist"):
        prepared("wordnet", tokenizer, tmp_path, "sequence")


@pytest.mark.skipif(wordnet.folder("wordnet") is None, reason="WordNet is not installed (Debian: wordnet-base)")
def test_installed_wordnet():
    rows = LabelledTextData(path="wordnet").examples()
    assert len(rows) == 117_659
    assert len({row.label for row in rows}) == 45
