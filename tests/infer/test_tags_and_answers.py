"""A loaded encoder tags words and finds answers as transformers does, also in texts longer than it reads."""

import json
import re

import pytest
import torch

import onefold
from onefold.core.errors import UserError
from onefold.data.text.labelled.labels import Example
from onefold.infer.answers import answer_questions
from onefold.infer.evaluation.judge import judge, judge_rows
from onefold.infer.tags import entities
from onefold.infer.text_encoder import TextEncoder
from tests.infer.test_text_encoder import run

TEXT = "Ada Lovelace wrote notes about Mr. Babbage's engine in London, where she lived; the engine was never built."
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
WORDS = sorted(set(re.findall(r"\w+", TEXT.lower())))


def published(folder, name, **config):
    """A random model of transformers with a small WordPiece vocabulary."""
    transformers = pytest.importorskip("transformers")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,;'?", *WORDS, "who", "##s", "love", "##lace", "s"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(p for p in dict.fromkeys(pieces) if p not in ("lovelace",)))
    tokenizer = transformers.BertTokenizerFast(str(vocabulary))
    torch.manual_seed(1)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    shape = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **small, **config)
    model = getattr(transformers, name)(shape).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return transformers, model, tokenizer, onefold.load(folder / "model")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    labels = dict(enumerate(NAMES))
    return published(tmp_path_factory.mktemp("tags"), "BertForTokenClassification", id2label=labels)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return published(tmp_path_factory.mktemp("answers"), "BertForQuestionAnswering")


def test_entities_are_those_of_the_pipeline(tagger):
    transformers, model, tokenizer, ours = tagger
    pipeline = transformers.TokenClassificationPipeline(model=model, tokenizer=tokenizer, aggregation_strategy="first")
    expected = pipeline(TEXT)
    assert len(expected) > 2
    found = entities(TEXT, ours.tag([TEXT])[0])
    assert [(e.kind, e.start, e.end) for e in found] == [(e["entity_group"], e["start"], e["end"]) for e in expected]
    assert [e.share for e in found] == pytest.approx([float(e["score"]) for e in expected], abs=1e-5)


def test_given_words_are_tagged_one_by_one(tagger):
    ours: TextEncoder = tagger[-1]
    words = ["Ada", "Lovelace's", "engine", "\u200b"]
    [tags] = ours.tag([words])
    assert [tag.word for tag in tags] == words
    [whole] = ours.tag(["Ada Lovelace's engine"])
    assert [tag.name for tag in tags[:3]] == [whole[0].name, whole[1].name, whole[-1].name]


def test_long_texts_are_tagged_where_most_around_a_word_is_seen(tagger):
    ours: TextEncoder = tagger[-1]
    text = " ".join([TEXT] * 6)
    [tags] = ours.tag([text])
    assert "".join(tag.word for tag in tags) == text.replace(" ", "")
    assert all(text[tag.start : tag.end] == tag.word for tag in tags)
    assert [t.name for t in tags[:10]] != []
    assert all(tag.share > 0 for tag in tags)


def test_answers_are_the_likeliest_spans_of_the_published_model(reader):
    _, model, tokenizer, ours = reader
    questions = ["Who wrote notes?", "Where?", "Who lived in London?"]
    found = answer_questions(ours, questions, [TEXT] * 3, none=False)
    for question, answer in zip(questions, found):
        assert TEXT[answer.start : answer.end] == answer.text
        encoded = tokenizer(question, TEXT, return_tensors="pt", return_offsets_mapping=True)
        offsets, kinds = encoded.pop("offset_mapping")[0], encoded.sequence_ids()
        with torch.no_grad():
            said = model(**encoded)
        allowed = torch.tensor([kind == 1 for kind in kinds])
        seen = allowed.clone()
        seen[0] = True
        start, end = (logits[0].masked_fill(~seen, -1e9).softmax(0) for logits in (said.start_logits, said.end_logits))
        both = (start[:, None] * end) * allowed * allowed[:, None]
        both = both.triu().tril(29)
        i, j = divmod(int(both.argmax()), len(start))
        assert (answer.start, answer.end) == (int(offsets[i][0]), int(offsets[j][1]))
        assert answer.share == pytest.approx(float(both[i, j]), abs=1e-5)


def test_a_long_context_is_read_in_windows(reader):
    ours: TextEncoder = reader[-1]
    context = " ".join([TEXT] * 5) + " who"
    answer = ours.answer("Who?", context, none=False)
    assert context[answer.start : answer.end] == answer.text != ""
    with pytest.raises(UserError, match="the question is too long to be read with a text"):
        ours.answer("who " * 80, TEXT)


def test_a_model_may_say_that_there_is_no_answer(reader):
    ours: TextEncoder = reader[-1]
    network = ours.network
    try:
        before = network.classifier.bias.clone()
        kept = network.classify
        network.classify = lambda features: kept(features) + 100 * (torch.arange(features.shape[1]) == 0)[:, None]
        assert ours.answer("Who?", TEXT).text == ""
        assert ours.answer("Who?", TEXT, none=False).text != ""
    finally:
        del network.classify
    assert torch.equal(network.classifier.bias, before)


def test_judged_by_what_it_says(tagger, reader, tmp_path, capsys):
    ours: TextEncoder = tagger[-1]
    words = TEXT.split()
    own = [[tag.word, tag.name] for tag in ours.tag([words])[0]]
    right = judge(ours, [Example("a:1", TEXT, "", own)])
    assert {figure.value for figure in right.figures} == {1.0}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"tokens": words, "tags": [name for _, name in own[:-1]] + ["B-DOG"]}))
    with pytest.raises(UserError, match=r"rows\.jsonl:1: no model learned the label 'B-DOG'; known are O, B-PER"):
        judge_rows(ours, str(rows))
    answering: TextEncoder = reader[-1]
    said = answering.answer("Who?", TEXT, none=False).text
    rows.write_text(json.dumps({"question": "Who?", "context": TEXT, "answers": [said, "London"]}))
    found = judge_rows(answering, str(rows))
    assert [figure.value for figure in found.figures] == [1.0, 1.0]
    assert "exact match 100.0%" in capsys.readouterr().out


def test_verbs(tagger, reader, tmp_path, monkeypatch, capsys):
    models = [tmp_path / "tagger", tmp_path / "reader"]
    for model, folder in zip((tagger[-1], reader[-1]), models):
        model.save(folder)
    (tmp_path / "text.txt").write_text(TEXT)
    assert run(monkeypatch, "tag", models[0], TEXT) == 0
    lines = capsys.readouterr().out.splitlines()
    found = entities(TEXT, tagger[-1].tag([TEXT])[0])
    assert [line.split("\t")[:2] for line in lines] == [[e.text, e.kind] for e in found]
    assert run(monkeypatch, "tag", models[0], tmp_path / "text.txt", "--words") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(tagger[-1].tag([TEXT])[0])
    code = run(monkeypatch, "answer", models[1], "Who?", tmp_path / "text.txt")
    expected = reader[-1].answer("Who?", TEXT)
    assert code == (0 if expected.text else 1)
    assert expected.text in capsys.readouterr().out
    for verb, arguments, line in (
        ("tag", [models[1], TEXT], "does not tag words"),
        ("answer", [models[0], "Who?", TEXT], "does not find answers"),
        ("predict", [models[0], TEXT], "gives no numbers"),
        ("classify", [models[0], TEXT], "tags words: use tag"),
        ("evaluate", [models[0]], "needs data="),
    ):
        assert run(monkeypatch, verb, *arguments) == 2
        assert line in capsys.readouterr().err
