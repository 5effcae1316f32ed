import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from onefold.cli.main import app
from onefold.core.errors import UserError
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.report import LEARNED, coloured, inspect_chat, show
from onefold.interop.tokenizers.reader import open_tokenizer

TALK = [
    {"role": "user", "content": "the river?\x1b[2J <|end|>"},
    {"role": "assistant", "content": "runs\n東京 🙂"},
    {"role": "user", "content": "and then"},
    {"role": "assistant", "content": "it reads"},
]


@pytest.fixture
def file(tmp_path):
    rows = [TALK, TALK[2:], [TALK[0], TALK[2]], [{**m, "content": m["content"] * 20} for m in TALK[:2]]]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    return path


def test_what_is_learned_is_coloured_and_counted(file, tokenizer):
    found = inspect_chat(ChatData(path=str(file), context=100, held_out=0), tokenizer, 2)
    rows = [row for one in found.first for row in one.rows]
    assert [one.name for one in found.first] == ["talks.jsonl:1", "talks.jsonl:2"]
    assert (found.answers, found.tokens) == (4, sum(len(row.ids) for row in rows))
    assert found.learned == sum(sum(row.learned) for row in rows) > 0
    text = coloured(rows[0], tokenizer)
    green = "".join(text.plain[s.start : s.end] for s in text.spans if str(s.style).removesuffix(" bold") in LEARNED)
    assert green == "runs↵\n東京 🙂<|end|>it reads<|end|>"
    assert "\x1b" not in text.plain  # what a file holds commands no terminal
    assert found.fitter.mistakes == [f"{file}:3: messages 1 and 2 are both of the user: join them, or mend the order"]
    assert found.long == [("talks.jsonl:4", found.lengths[-1], 0)]


def test_last_answers_only(file, tokenizer):
    every, last = (
        inspect_chat(ChatData(path=str(file), held_out=0, learn=which), tokenizer) for which in ("answers", "last")
    )
    assert last.tokens == every.tokens
    text = coloured(last.first[0].rows[0], tokenizer, plain=True).plain
    assert text.endswith("«it reads<|end|>»")
    assert text.count("«") == 1


def test_tokens_that_are_new_to_the_model_are_named(file, tokenizer):
    assert inspect_chat(ChatData(path=str(file), held_out=0), tokenizer).new == []
    found = inspect_chat(ChatData(path=str(file), held_out=0, template="chatml"), tokenizer)
    assert found.new == ["<|im_start|>", "<|im_end|>"]


def test_without_colours_marks_stand_around_what_is_learned(file, tokenizer):
    out = io.StringIO()
    show(inspect_chat(ChatData(path=str(file), context=100, held_out=0), tokenizer), Console(file=out, width=300))
    said = out.getvalue()
    assert "«it reads<|end|>»" in said
    assert "3 with 4 answers" in said
    assert "1 too long and skipped" in said
    assert "talks.jsonl:3: messages 1 and 2" in said
    assert "█" in said


def test_the_command(file, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "model")
    assert open_tokenizer(tmp_path / "model").digest == tokenizer.digest
    runner = CliRunner()
    result = runner.invoke(app, ["data", "inspect", str(file), "--model", str(tmp_path / "model"), "-n", "1"])
    assert result.exit_code == 1  # a row is not well-formed
    assert "tokens in a conversation" in result.output
    lines = file.read_text().split("\n")
    file.write_text("\n".join(lines[:2]))
    result = runner.invoke(app, ["data", "inspect", str(file), "template=chatml", "context=300"])
    assert result.exit_code == 0, result.output
    assert "<|im_start|>assistant" in result.output
    assert "bytes in a conversation" in result.output
    result = runner.invoke(app, ["data", "inspect", str(file), "template=nothing"])
    assert isinstance(result.exception, UserError)
