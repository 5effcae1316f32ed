"""A file of texts becomes a file of vectors: those of the model, in order, whatever the format."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import onefold
from onefold.cli.main import main
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, Tokenizer
from onefold.infer import embed_file as module
from onefold.infer.embed_file import embed_file
from onefold.infer.embedder import batches
from onefold.infer.retrieve import evaluate_retrieval
from onefold.interop.artifact import save_artifact
from onefold.models import encoder_families
from onefold.models.embedder import embedder_of

TEXTS = [f"text {n} " + "of vectors " * (n % 9) for n in range(50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = Tokenizer.train([__doc__] * 3, 300, special=ENCODER_TOKENS)
    small = {"width": 16, "depth": 1, "block.mixer.heads": 2, "block.ffn.width": 24, "vocab": 300, "context": 32}
    config = embedder_of(encoder_families.bert().but({**small, "embed.position.context": 32}))
    place = tmp_path_factory.mktemp("model") / "model"
    torch.manual_seed(0)
    save_artifact(place, config.build(), config, tokenizer)
    return place


def read(file) -> np.ndarray:
    if file.suffix == ".npy":
        return np.load(file)
    if file.suffix == ".parquet":
        return np.array(pq.read_table(file)["embedding"].to_pylist(), np.float32)
    return np.array([json.loads(line)["embedding"] for line in file.read_text().splitlines()], np.float32)


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".jsonl"])
def test_vectors_are_those_of_the_model_in_order(folder, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 16)  # four windows
    model = onefold.load(folder)
    expected = model.embed(TEXTS).numpy()
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS) + "\n")
    pq.write_table(pa.table({"id": range(50), "body": TEXTS}), tmp_path / "table.parquet")
    for name, column in (("lines.txt", None), ("table.parquet", "body")):
        assert embed_file(model, tmp_path / name, tmp_path / f"out{suffix}", column=column) == (50, 16)
        np.testing.assert_allclose(read(tmp_path / f"out{suffix}"), expected, atol=1e-5)


def test_an_encoder_serves_with_the_mean_of_its_features(folder, tmp_path):
    from onefold.infer.embedder import as_embedder
    from onefold.models.families import gpt2

    embedder = onefold.load(folder)
    config = embedder.config.trunk.but({"masked": {}, "classes": 3})
    network = config.build()
    save_artifact(tmp_path / "encoder", network, config, embedder.tokenizer)
    encoder = onefold.load(tmp_path / "encoder")
    torch.testing.assert_close(as_embedder(encoder, "encoder").embed(TEXTS), encoder.embed(TEXTS), atol=1e-5, rtol=0)
    config = gpt2().but({"vocab": 300, "width": 16, "depth": 1, "block.mixer.heads": 2})
    save_artifact(tmp_path / "writer", config.build(), config, embedder.tokenizer)
    with pytest.raises(UserError, match="onefold train cpt start=writer"):
        as_embedder(onefold.load(tmp_path / "writer"), "writer")


def test_mistakes_leave_no_file(folder, tmp_path):
    model = onefold.load(folder)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    for name, out, options, line in (
        ("empty.txt", "v.npy", {}, "holds no texts"),
        ("rows.jsonl", "v.npy", {}, "rows.jsonl:2: no text"),
        ("rows.jsonl", "v.npy", {"column": "body"}, "has text, and no 'body'"),
        ("rows.jsonl", "v.csv", {}, "vectors are written as"),
        ("rows.jsonl", "v.npy", {"kind": "nothing"}, "no kind of text"),
    ):
        with pytest.raises(UserError, match=line):
            embed_file(model, tmp_path / name, tmp_path / out, **options)
        assert not (tmp_path / out).exists()


def test_batches_hold_every_text_once_and_hardly_any_padding():
    lengths = np.random.default_rng(0).integers(1, 200, 500).tolist()
    found = list(batches(lengths, 1024))
    assert sorted(i for rows in found for i in rows) == list(range(500))
    for rows in found:
        own = [lengths[i] for i in rows]
        assert len(rows) * max(own) <= 1024
        assert min(own) >= 0.9 * max(own)
    assert list(batches([5000], 1024)) == [[0]]


def test_the_verb_writes_a_file_or_prints_a_vector(folder, tmp_path, monkeypatch, capsys):
    def run(*command) -> int:
        monkeypatch.setattr(sys, "argv", ["onefold", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    assert run("embed", folder, tmp_path / "lines.txt", "--out", tmp_path / "v.npy") == 0
    assert "50 vectors of 16 numbers" in capsys.readouterr().out
    assert run("embed", folder, "a text", "--device", "cpu") == 0
    vector = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(vector, onefold.load(folder).embed(["a text"])[0], atol=1e-5)
    for command, line in (
        ((tmp_path / "lines.txt",), "say where the vectors go"),
        (("a text", "--out", tmp_path / "w.npy"), "is no file"),
        (("a text", "--as", "nothing"), "no kind of text"),
    ):
        assert run("embed", folder, *command) == 2
        assert line in capsys.readouterr().err
    assert run("generate", folder, "a text") == 2
    assert "makes vectors of texts and writes none" in capsys.readouterr().err
    assert run("classify", folder, "a text") == 2
    assert "classifies nothing" in capsys.readouterr().err


def test_evaluation_finds_second_texts_by_first_ones(folder, tmp_path, capsys):
    from onefold.infer.retrieve import evaluate_retrieval

    rows = [{"question": text, "answer": text} for text in TEXTS]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate_retrieval(onefold.load(folder), str(tmp_path / "same.jsonl"))
    assert found["vectors"].recall[1] == found["vectors"].mrr == found["vectors"].ndcg == 1
    assert "50 queries, 50 documents" in capsys.readouterr().out


def test_documents_are_asked_for_what_the_model_learned(folder, tmp_path, capsys):
    """One trained on neighbouring passages finds passages, and needs no Python for it."""
    notes = tmp_path / "notes"
    notes.mkdir()
    for n in range(3):
        lines = [f"Note {n}, paragraph {p}: " + f"words about thing {n * 10 + p} " * 6 for p in range(4)]
        (notes / f"{n}.txt").write_text("\n\n".join(lines))
    model = onefold.load(folder)
    with pytest.raises(UserError, match="holds no pairs of texts"):
        evaluate_retrieval(model, str(notes))
    model._loaded.card["run"] = {"data": {"pairs": {"kind": "neighbours", "characters": 100}}}
    found = evaluate_retrieval(model, str(notes))
    assert "6 queries, 6 documents" in capsys.readouterr().out
    assert 0 <= found["vectors"].mrr <= 1
