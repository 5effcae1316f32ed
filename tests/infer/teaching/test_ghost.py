"""Dialogues under a rule: the teacher reads it before every user's message, the student once, and learns the end."""

import json

import pytest
from typer.testing import CliRunner

from onefold.cli.main import app
from onefold.core.errors import UserError
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.files import read_conversations
from onefold.data.text.chat.report import inspect_chat
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.teaching.ghost import GhostConfig, ghost, read_instructions
from onefold.infer.teaching.teacher import Refusals, Written
from tests.infer.service import serving


class Echo:
    """Says what it was last told in capitals; takes no longer conversations than `room`, and is down after `limit`."""

    name = "echo"

    def __init__(self, room: int = 10**6, limit: int = 10**6):
        self.room, self.limit, self.read = room, limit, []

    def answer(self, asked, sampling):
        refusals = Refusals(asked)
        for i, one in enumerate(asked):
            if len(self.read) == self.limit:
                raise UserError("the service is down")
            if len(one.messages) > self.room:
                if failed := refusals.add(i, UserError("too long")):
                    raise failed
                continue
            refusals.others = True
            self.read.append(one.messages)
            said = one.messages[-1]["content"]
            yield i, Written("" if "hush" in said else said.upper(), "length" if "go on" in said else "stop")
        yield from refusals.passed()


@pytest.fixture
def rules(tmp_path):
    file = tmp_path / "rules.jsonl"
    rows = [
        {"instruction": "Speak French.", "short": "French.", "kind": "language"},
        {"instruction": "Speak Dutch.", "short": "Dutch.", "kind": "language"},
        {"instruction": "Act as a cook.", "kind": "figure"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("".join(f"q{n}\n" for n in range(20)))
    return file


def written(config: GhostConfig) -> list[list[dict]]:
    return [messages for _, messages in read_conversations(config.out / "chat.jsonl")]


def test_the_teacher_reads_the_rule_before_every_message_and_the_student_once(questions, rules, tmp_path):
    config, teacher = GhostConfig(prompts=questions, instructions=rules, out=tmp_path / "g", shorten=0), Echo()
    done = ghost(config, teacher)
    talks = written(config)
    assert (done.rows, done.answers, done.ended, done.lost, done.cut) == (len(talks), 20, 0, 0, 0)
    assert [m["content"] for talk in talks for m in talk if m["role"] == "user"] == [f"q{n}" for n in range(20)]
    assert {len(talk) for talk in talks[:-1]} <= {5, 7, 9, 11}
    assert len({len(talk) for talk in talks}) > 1
    for talk in talks:
        rule = talk[0]["content"]
        assert talk[0]["role"] == "system"
        assert rule in {"Speak French.", "Speak Dutch.", "Act as a cook."}
        for n, message in enumerate(talk[1:]):
            assert rule not in message["content"]
            if message["role"] == "assistant":
                assert message["content"] == f"{rule}\n\n{talk[n]['content']}".upper()
    longest = max(teacher.read, key=len)
    assert len({m["content"].split("\n\n")[0] for m in longest if m["role"] == "user"}) == 1
    assert longest[0]["role"] == "user"


def test_only_the_last_answer_is_learned(questions, rules, tmp_path):
    config = GhostConfig(prompts=questions, instructions=rules, out=tmp_path / "g", turns=(3, 3), shorten=0)
    ghost(config, Echo())
    data = ChatData(path=str(config.out / "chat.jsonl"), learn="last", held_out=0)
    found = inspect_chat(data, Tokenizer.train([], 300), count=100)
    rows = [row for one in found.first for row in one.rows]
    learned = [[i for i, chosen in zip(row.ids, row.learned) if chosen] for row in rows]
    said = [found.fitter.tokenizer.decode(ids) for ids in learned]
    assert said == [talk[-1]["content"] for talk in written(config)]
    assert said[0].endswith("Q2")


def test_rules_are_combined_by_kind_and_shortened_half_of_the_time(tmp_path, rules):
    file = tmp_path / "questions.txt"
    file.write_text("".join(f"q{n}\n" for n in range(400)))
    config = GhostConfig(prompts=file, instructions=rules, out=tmp_path / "g", turns=(1, 1), combine=2, place="user")
    ghost(config, Echo())
    rows = [json.loads(line) for line in (config.out / "chat.jsonl").read_text().splitlines()]
    kept = [row["messages"][0]["content"].split("\n\n")[0] for row in rows]
    told = [row["instruction"] for row in rows]
    assert {len(row["messages"]) for row in rows} == {2}
    assert not any("French" in rule and "Dutch" in rule for rule in told)
    assert 100 < sum("cook" in rule and "Speak" in rule for rule in told) < 300
    spoken = [(short, rule) for short, rule in zip(kept, told) if "Speak" in rule]
    assert all(short in (rule, rule.replace("Speak ", "")) for short, rule in spoken)
    assert 0.35 < sum("Speak" in short for short, _ in spoken) / len(spoken) < 0.65


def test_other_answers_of_a_file_are_kept_and_not_learned(tmp_path, rules):
    file = tmp_path / "talks.jsonl"
    talk = [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    file.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]}) + "\n")
    config, teacher = GhostConfig(prompts=file, instructions=rules, out=tmp_path / "g", answers="last"), Echo()
    ghost(config, teacher)
    (read,), ((system, *_, kept, asked, last),) = teacher.read, written(config)
    assert [m["content"].split("\n\n")[-1] for m in read] == ["Be kind.", "a", "b", "c"]
    rule = json.loads((config.out / "chat.jsonl").read_text())["instruction"]
    assert system["content"].startswith("Be kind.\n")
    assert (kept["content"], kept["weight"], asked["content"]) == ("b", 0, "c")
    assert last == {"role": "assistant", "content": f"{rule}\n\nc".upper()}
    everything = config.but({"answers": "all", "out": tmp_path / "all"})
    ghost(everything, Echo())
    assert [m["content"].split("\n\n")[-1] for m in written(everything)[0][1:]] == ["a", "A", "c", "C"]


def test_nothing_is_asked_twice_and_other_forms_ask_nothing(questions, rules, tmp_path):
    config = GhostConfig(prompts=questions, instructions=rules, out=tmp_path / "g")
    with pytest.raises(UserError, match=r"down\n11 answers are kept in .*asked\.jsonl; the same command goes on"):
        ghost(config, Echo(limit=11))
    assert not (config.out / "chat.jsonl").exists()
    teacher = Echo()
    ghost(config, teacher)
    assert len(teacher.read) == 9
    whole = written(config)
    other = config.but({"out": tmp_path / "other"})
    ghost(other, Echo())
    assert written(other) == whole
    ghost(config.but({"place": "user", "shorten": 1.0}), teacher)
    assert len(teacher.read) == 9
    assert written(config) != whole


def test_dialogues_end_where_the_teacher_takes_or_says_no_more(tmp_path, rules, capsys):
    file = tmp_path / "questions.txt"
    file.write_text("".join(f"q{n}\n" for n in range(40)))
    config = GhostConfig(prompts=file, instructions=rules, out=tmp_path / "g", turns=(4, 4))
    done = ghost(config, Echo(room=5))
    assert (done.rows, done.answers, done.ended, done.lost) == (10, 30, 10, 0)
    assert {len(talk) for talk in written(config)} == {7}
    assert "too long; no dialogue that is as long goes on" in capsys.readouterr().err
    file.write_text("q0\nq1\nhush\nq3\n" + "hush\nq1\nq2\nq3\n" + "go on\n" * 4)
    done = ghost(config.but({"out": tmp_path / "h"}), Echo())
    assert (done.rows, done.answers, done.ended, done.lost, done.cut) == (2, 6, 1, 1, 1)
    file.write_text("hush\n")
    with pytest.raises(UserError, match="echo answers none of the 1 dialogues"):
        ghost(config.but({"out": tmp_path / "j"}), Echo())
    file.write_text("".join(f"q{n}\n" for n in range(40)))
    with pytest.raises(UserError, match="None of the first 8"):
        ghost(config.but({"out": tmp_path / "i"}), Echo(room=0))


def test_mistakes_are_told(tmp_path, rules, questions):
    def fails(match: str, **changes):
        given = {"prompts": questions, "instructions": rules, "out": tmp_path / "out", **changes}
        with pytest.raises(UserError, match=match):
            ghost(GhostConfig.from_dict(given), Echo())

    def file(name: str, *rows) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    fails(r"questions\.txt:1 is a single prompt", answers="last")
    fails("combine=3 needs rules of as many kinds, and .* has 2", combine=3)
    fails(r"least and the most", turns=(3, 2))
    fails("does not exist: instructions", instructions="none.txt")
    fails(r"empty\.jsonl holds no instructions", instructions=file("empty.jsonl"))
    fails(r"bad\.jsonl:2 is no instruction", instructions=file("bad.jsonl", {"text": "a"}, {"text": 7}))
    fails(r"names\.jsonl:1 has rule: name the column", instructions=file("names.jsonl", {"rule": "a"}))
    user, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    fails(r"two\.jsonl:1: a user's message has no", prompts=file("two.jsonl", {"messages": [user] * 2}), answers="last")
    fails(r"t\.jsonl:1: a message of the assistant is out", prompts=file("t.jsonl", {"messages": [said, user]}))
    fails("holds something else", out=tmp_path)
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "config.json").write_text('{"seeds": "a"}')
    fails("task holds something else", out=tmp_path / "task")
    lines = tmp_path / "rules.txt"
    lines.write_text("Be brief.\n\n")
    assert read_instructions(lines) == [("Be brief.", "Be brief.", "")]


def test_the_verb_asks_a_service_and_inspect_shows_what_is_learned(tmp_path, questions, rules):
    runner = CliRunner()
    with serving() as service:
        given = [f"prompts={questions}", f"instructions={rules}", f"out={tmp_path / 'g'}", "turns=[2,2]", "seed=3"]
        result = runner.invoke(app, ["ghost", service.url + "/v1", *given, "temperature=0.5", "parallel=1"])
    assert result.exit_code == 0, result.output
    assert len(service.seen) == 20
    assert {(body["temperature"], body["seed"]) for body in service.seen} == {(0.5, 3)}
    result = runner.invoke(app, ["data", "inspect", str(tmp_path / "g" / "chat.jsonl"), "learn=last", "-n", "0"])
    assert "10 with 20 answers, of which 10 are learned" in result.output
    result = runner.invoke(app, ["ghost", service.url, f"prompts={questions}"])
    assert "ghost needs instructions=" in str(result.exception or result.output)
