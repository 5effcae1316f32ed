"""A store of text, from the command line to a run."""

import json

from typer.testing import CliRunner

import onefold
from onefold.cli.main import app


def said(*command: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *command])
    assert result.exit_code == code or isinstance(result.exception, Exception)
    return result.output if result.exit_code == code else str(result.exception)


def test_text_becomes_a_store_that_a_run_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for n in range(20):
        (tmp_path / "notes" / f"{n}.txt").write_text(f"Note {n}: the quick brown fox jumps over the lazy dog.\n" * 20)
    assert "wrote notes.store" in said("build", "notes/", "notes.store", "--text", "tokenizer.vocab=300")
    facts = json.loads(said("info", "notes.store"))["facts"]
    assert facts["documents"] == 20
    assert "is whole" in said("verify", "notes.store")
    assert "wrote 3 files" in said("sample", "notes.store", "look", "-n", "3")
    assert "quick brown fox" in next((tmp_path / "look").iterdir()).read_text()
    result = onefold.train("gpt2", tiny=True, data="notes.store", **{"trainer.steps": 2, "trainer.batch": 2})
    assert result.status == "finished"
    assert json.loads((result.out / "run.json").read_text())["data"] == facts["hash"]
    assert "a store of text is made anew" in said("build", "notes/", "notes.store", "--text", "--append", code=-1)
