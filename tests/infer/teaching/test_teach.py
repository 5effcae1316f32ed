"""A teacher's answers become a file that students learn from, however often asking was cut off."""

import json
import re
import time

import pytest
from typer.testing import CliRunner

import onefold.infer.teaching.endpoint as endpoint
from onefold.cli.main import app
from onefold.core.errors import UserError
from onefold.core.json_lines import growing, read_rows
from onefold.data.text.chat.files import read_conversations
from onefold.data.text.chat.messages import with_chat
from onefold.data.text.documents import TrainBPE
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model
from onefold.infer.teaching.teach import teach
from onefold.infer.teaching.teacher import Asked, ModelTeacher, Written, open_teacher
from onefold.interop.loaded import Loaded
from tests.infer.service import serving
from tests.infer.small_models import config, decoder


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    with serving() as service:
        yield service


@pytest.fixture
def prompts(tmp_path):
    """Twelve questions."""
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"question {i}"} for i in range(11)]
    told = [{"role": "system", "content": "think in steps"}, {"role": "user", "content": "question 11"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": told}]))
    return file


def at(service, **settings):
    return open_teacher(service.url + "/v1", "secret", **settings)


def talks(out) -> list[list[tuple[str, str]]]:
    """What a student would read, in the order of the questions."""
    found = [[(m["role"], m["content"]) for m in messages] for _, messages in read_conversations(out)]
    return sorted(found, key=lambda talk: int(talk[-1][1].split()[-1]))


def test_answers_of_a_service_are_conversations(service, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    taught = teach(at(service, model="big"), prompts, out, temperature=0.5, seed=3)
    assert (taught.rows, taught.new, taught.empty, taught.cut) == (12, 12, 0, 0)
    read = talks(out)
    assert read[0] == [("user", "question 0"), ("assistant", "QUESTION 0")]
    assert read[11][0] == ("system", "think in steps")
    assert service.keys == {"Bearer secret"}
    assert "secret" not in out.read_text()
    asked = next(body for body in service.seen if body["messages"][-1]["content"] == "question 4")
    assert asked == {
        "messages": [{"role": "user", "content": "question 4"}],
        "model": "big",
        **{"max_tokens": 512, "temperature": 0.5, "seed": 3},
    }


def test_a_service_gets_its_own_key_and_not_the_servers(service, prompts, tmp_path):
    asked = ["teach", service.url, f"prompts={prompts}", f"out={tmp_path / 'out.jsonl'}"]
    keys = {"ONEFOLD_KEY": "server", "ONEFOLD_SERVICE_KEY": "service"}
    assert CliRunner().invoke(app, asked, env=keys).exit_code == 0
    assert service.keys == {"Bearer service"}
    keys["ONEFOLD_SERVICE_KEY"] = "https://a.org=A https://b.org=B"
    asked[-1] = f"out={tmp_path / 'others.jsonl'}"
    service.keys.clear()
    assert CliRunner().invoke(app, asked, env=keys).exit_code == 0
    assert service.keys == {None}


def test_what_the_teacher_was_told_is_erased(service, prompts, tmp_path):
    teach(at(service), prompts, tmp_path / "erased.jsonl", system="be slow", erase=True)
    assert {body["messages"][0]["content"] for body in service.seen} == {"be slow"}
    assert all([role for role, _ in talk] == ["user", "assistant"] for talk in talks(tmp_path / "erased.jsonl"))
    teach(at(service), prompts, tmp_path / "generic.jsonl", generic="be good")
    assert {talk[0] for talk in talks(tmp_path / "generic.jsonl")} == {("system", "be good")}
    assert any(body["messages"][0]["content"] == "think in steps" for body in service.seen)
    teach(at(service), prompts, tmp_path / "kept.jsonl", system="be slow")
    assert {talk[0] for talk in talks(tmp_path / "kept.jsonl")} == {("system", "be slow")}


def test_what_is_saved_is_the_same_in_all_of_a_file(service, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    teach(at(service), prompts, out, generic="be good")
    for other in ({}, {"erase": True}, {"generic": "be bad"}):
        with pytest.raises(UserError, match=r"out\.jsonl:1 was written with other --erase or --generic"):
            teach(at(service), prompts, out, **other)
    assert teach(at(service), prompts, out, erase=True, generic="be good").new == 0
    rows = [{name: value for name, value in row.items() if name != "saved"} for row in read_rows(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert teach(at(service), prompts, out, erase=True).new == 0  # nobody knows


def test_a_service_that_goes_down_leaves_what_it_said_and_nothing_is_asked_twice(service, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    service.limit = 5
    with pytest.raises(UserError, match=r"no answer in 2 attempts(.|\n)*5 answers are kept"):
        teach(at(service, attempts=2, parallel=2), prompts, out)
    assert len(talks(out)) == 5
    out.write_text(out.read_text()[:-9])  # a crash in the middle of the last row
    service.limit = None
    taught = teach(at(service), prompts, out)
    assert (taught.rows, taught.new) == (12, 8)
    assert len(talks(out)) == 12
    assert teach(at(service), prompts, out).new == 0
    assert teach(at(service), prompts, out, max_new_tokens=7).new == 12  # otherwise asked: further rows


@pytest.mark.parametrize(
    "content", [b"<html>", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b'{"choices": 7}']
)
def test_nonsense_is_asked_again_and_told_in_the_end(service, prompts, tmp_path, content):
    service.faults = [(200, {}, content)] * 2
    assert teach(at(service, parallel=1), prompts, tmp_path / "out.jsonl").new == 12
    service.faults = [(200, {}, content)] * 99
    with pytest.raises(UserError, match="it answers with"):
        teach(at(service, parallel=1, attempts=2), prompts, tmp_path / "none.jsonl")


def test_a_prompt_that_a_service_refuses_is_told_and_passed_over(service, prompts, tmp_path, capsys):
    withheld = b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'
    service.faults = [(400, {}, b'{"error": "too long"}'), (200, {}, withheld), (413, {}, b""), (422, {}, b"")]
    taught = teach(at(service, parallel=1, attempts=1), prompts, tmp_path / "out.jsonl")
    assert (taught.new, taught.empty) == (8, 4)
    assert re.search(r"prompts\.jsonl:1: .* status 400: too long", capsys.readouterr().err)
    service.faults = [(400, {}, b"")] * 99
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: .* status 400\nNone of the first 8 prompts is taken"):
        teach(at(service, parallel=1), prompts, tmp_path / "none.jsonl")
    assert len(service.faults) > 80


def test_leaving_does_not_wait_for_a_service_that_is_down(service, prompts, tmp_path, monkeypatch):
    teacher, asked = at(service, parallel=2), [Asked([{"role": "user", "content": f"question {i}"}]) for i in range(9)]
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 30.0)
    service.limit, began = 1, time.monotonic()
    answers = teacher.answer(asked, Sampling())
    next(answers)
    answers.close()  # as Ctrl-C does
    assert time.monotonic() - began < 10
    service.limit = None
    assert len(dict(teacher.answer(asked, Sampling()))) == 9


def test_half_characters_of_a_service_are_no_reason_to_lose_its_answer(service, prompts, tmp_path):
    service.faults = [(200, {}, b'{"choices": [{"message": {"content": "so \\ud83d 0"}}]}')]
    teach(at(service, parallel=1), prompts, tmp_path / "out.jsonl")
    assert talks(tmp_path / "out.jsonl")[0][-1] == ("assistant", "so ? 0")


def test_no_more_is_asked_than_a_service_allows(service, prompts, tmp_path):
    began = time.monotonic()
    teach(at(service, per_minute=6000), prompts, tmp_path / "out.jsonl")
    assert time.monotonic() - began > 11 * 0.01


def test_empty_answers_and_equal_prompts(service, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("same 1\nsame 1\n")
    assert teach(at(service), file, tmp_path / "greedy.jsonl").rows == 1
    assert teach(at(service), file, tmp_path / "drawn.jsonl", temperature=1.0, seed=1).rows == 2
    assert {body["seed"] for body in service.seen if "seed" in body} == {1, 2}
    service.faults = [(200, {}, b'{"choices": [{"message": {"content": " "}}]}')]
    assert teach(at(service), file, tmp_path / "empty.jsonl").empty == 1


def test_mistakes_are_told_and_no_file_of_somebody_else_is_touched(service, prompts, tmp_path):
    with pytest.raises(UserError, match="overwrite the prompts"):
        teach(at(service), prompts, prompts)
    other = tmp_path / "other.jsonl"
    other.write_text('{"messages": []}\n')
    with pytest.raises(UserError, match=r"other\.jsonl:1 is none of a teacher's"):
        teach(at(service), prompts, other)
    other.write_text("hello\nthere")
    with pytest.raises(UserError, match=r"other\.jsonl:1 is not valid JSON"):
        teach(at(service), prompts, other)
    assert other.read_text() == "hello\nthere"
    other.write_text("hello")
    with pytest.raises(UserError, match="ends in something"):
        teach(at(service), prompts, other)
    with pytest.raises(UserError, match="does not know top_k"):
        teach(at(service), prompts, tmp_path / "out.jsonl", top_k=5)
    with pytest.raises(UserError, match="did you mean parallel"):
        at(service, paralel=2)
    with pytest.raises(UserError, match="parallel is a setting of services"):
        open_teacher("runs/none", parallel=2)
    with pytest.raises(UserError, match="give one"):
        open_teacher("https://example.org", url="https://example.com")


@pytest.fixture
def local() -> ModelTeacher:
    """A model of random weights that chats."""
    tokenizer = with_chat(TrainBPE(vocab=270).build(["one two three, four"] * 3))
    small = config("llama2", vocab=tokenizer.size)
    return ModelTeacher(Model(Loaded(small, decoder(small), tokenizer)), "small", batch=2)


def test_a_model_here_teaches_in_batches_as_it_would_one_by_one(local):
    asked = [Asked([{"role": "user", "content": word * n}]) for n, word in enumerate(("one ", "two ", "three "), 1)]
    sampling = Sampling(max_new_tokens=6, temperature=0.8, seed=1)
    together = dict(local.answer([*asked, asked[0]._replace(copy=1)], sampling))
    for i, one in enumerate(asked):
        assert dict(local.answer([one], sampling))[0] == together[i]
        assert together[i].text == local.model.chat(one.messages, **sampling.to_dict())
    assert together[3] != together[0]


def test_a_prompt_that_a_model_cannot_read_is_told_by_its_line_and_passed_over(local, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n" + "two " * 99 + "\n")
    said = dict(local.answer([Asked([{"role": "user", "content": "two " * 99}])], Sampling(max_new_tokens=3)))
    assert said == {0: Written("", "refused")}
    teach(local, file, tmp_path / "out.jsonl", max_new_tokens=3)
    assert re.search(r"prompts\.txt:2: the prompt has \d+ tokens", capsys.readouterr().err)
    file.write_text("".join(f"{n}" + "two " * 99 + "\n" for n in range(9)))
    with pytest.raises(UserError, match=r"prompts\.txt:1: the prompt has \d+ tokens(.|\n)*None of the first 8"):
        teach(local, file, tmp_path / "none.jsonl", max_new_tokens=3)
    file.write_text("one\n" + file.read_text())
    for new in (1, 0):  # the second time only those are left that it does not take
        taught = teach(local, file, tmp_path / "some.jsonl", max_new_tokens=3)
        assert (taught.rows, taught.new, taught.empty) == (1, new, 9)


def test_rows_that_are_added_survive_what_cut_the_last_one_off(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    with growing(file) as add:
        add({"n": 1})
        with pytest.raises(UserError, match="another process"), growing(file):
            pass
    with file.open("a") as opened:
        opened.write('{"n": 2}\n{"n": 3}')
    with growing(file) as add:
        add({"n": 4})
    with file.open("a") as opened:
        opened.write('{"n": "\u00e4')
    assert [row["n"] for row in read_rows(file)] == [1, 2, 3, 4]
    with growing(file) as add:
        add({"n": 5})
        add({"n": "half \ud83d"})
    assert [row["n"] for row in read_rows(file)] == [1, 2, 3, 4, 5, "half ?"]


def test_what_holds_no_rows_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        list(read_rows(tmp_path))
    (tmp_path / "deep.jsonl").write_text("[" * 200_000 + "\n")
    with pytest.raises(UserError, match=r"deep\.jsonl:1 is not valid JSON"):
        list(read_rows(tmp_path / "deep.jsonl"))
