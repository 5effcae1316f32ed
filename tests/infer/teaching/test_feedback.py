"""Answers of several models become preferences by what a judge says, however often asking was cut off."""

import json

import pytest
import torch
from typer.testing import CliRunner

from onefold.cli.main import app
from onefold.core.errors import UserError
from onefold.data.text.chat.answers import read_answers
from onefold.data.text.chat.messages import with_chat
from onefold.data.text.documents import TrainBPE
from onefold.infer.generation.sampling import Sampling
from onefold.infer.teaching import journal
from onefold.infer.teaching.endpoint import keys_of
from onefold.infer.teaching.feedback import FeedbackConfig, feedback
from onefold.infer.teaching.judges import ASPECTS, RewardTeacher, judge_by_template, rating
from onefold.infer.teaching.teacher import Asked, Refusals, Written
from onefold.infer.text_encoder import TextEncoder
from onefold.interop.loaded import Loaded
from tests.infer.service import serving
from tests.infer.small_models import config as small_config
from tests.infer.small_models import decoder


class Program:
    """Says what a function makes of the last message and the copy; is down after `limit` answers."""

    def __init__(self, name, say, limit=10**6):
        self.name, self.say, self.limit, self.asked = name, say, limit, []

    def answer(self, asked, sampling):
        for i, one in enumerate(asked):
            if len(self.asked) == self.limit:
                raise UserError(f"{self.name} is down")
            self.asked.append(one.messages[-1]["content"])
            yield i, Written(self.say(one.messages[-1]["content"], one.copy), "stop")


def by_length(text: str, copy: int) -> str:
    """The judge: answers are the better the longer they are; of one that says so nothing can be told."""
    said = text.split("[Answer]\n")[1].split("\n")[0]
    return "hm" if "unclear" in said else f"Long enough.\nRating: {min(10, len(said))}/10"


MODELS = {"a": lambda text, copy: "xx", "b": lambda text, copy: "xxxxx", "c": lambda text, copy: f"x{text[-1]}x"}


def models(limit=10**6):
    return [Program(name, say, limit) for name, say in MODELS.items()]


def judge(limit=10**6, aspects=("helpfulness",)):
    return judge_by_template(Program("judge", by_length, limit), aspects)


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"question {n}\n" for n in (*range(8), 0)))  # one comes twice
    return FeedbackConfig(prompts=file, out=tmp_path / "pairs.jsonl")


def pairs(config):
    return [json.loads(line) for line in config.out.read_text().splitlines()]


def test_the_best_answer_is_preferred_to_another_one(config, capsys):
    done = feedback(config, judge(), models())
    rows = pairs(config)
    assert (done.pairs, done.ties, done.lacking, done.empty, done.unread) == (8, 0, 0, 0, 0)
    assert {row["chosen"] for row in rows} == {"xxxxx"}
    assert {row["rejected_model"] for row in rows} == {"a", "c"}  # by chance
    assert {(row["rejected_model"], row["rejected_score"]) for row in rows} == {("a", 2.0), ("c", 3.0)}
    assert [row.answers[0] for row in read_answers(config.out, "pairs")] == ["xxxxx"] * 8
    assert "the better one in 100% of pairs: b" in capsys.readouterr().err
    feedback(config.but({"against": "worst"}), judge(), models())
    assert {row["rejected_model"] for row in pairs(config)} == {"a"}


def test_ties_empty_answers_and_those_without_a_rating_are_told(config, capsys):
    say = {
        "0": ["xx", "yy", "zz"],  # a tie
        "1": ["xx", "xx", "xx"],  # one answer, thrice
        "2": ["xx", "unclear", " "],  # one that counts
        "3": ["xx", "unclear", "yyy"],
    }
    programs = [
        Program(name, lambda text, copy, n=n: say.get(text[-1], ["p", "qq", "rrr"])[n]) for n, name in enumerate("abc")
    ]
    done = feedback(config, judge(), programs)
    assert (done.pairs, done.ties, done.lacking, done.empty, done.unread) == (5, 1, 2, 1, 2)
    assert [row["chosen"] for row in pairs(config)] == ["yyy", *["rrr"] * 4]
    told = capsys.readouterr().err
    assert "5 pairs" in told
    assert "1 ties; 2 prompts with fewer than two" in told
    assert "1 empty answers; 2 answers without a rating" in told


def test_aspects_are_averaged_and_one_without_a_rating_spoils_the_mean(config):
    def say(text, copy):
        if "as sure" in text:
            return "Rating: 2" if "xxxxx" in text else "none" if "x3x" in text else "Rating: 8"
        return "Score: 4"

    asked = judge_by_template(Program("judge", say), "honesty,helpfulness")
    done = feedback(config, asked, models())
    assert done.unread == 1
    assert {row["chosen_score"] for row in pairs(config)} == {6.0}
    assert {row["rejected_score"] for row in pairs(config)} == {3.0}


def test_what_was_said_is_asked_for_once_and_goes_on_to_the_same_pairs(config, tmp_path):
    whole = config.but({"out": tmp_path / "whole.jsonl"})
    feedback(whole, judge(), models())
    with pytest.raises(UserError, match=r"a is down\n3 answers are kept in .*pairs\.asked\.jsonl; the same command"):
        feedback(config, judge(), models(limit=3))
    first = models(limit=5)
    with pytest.raises(UserError, match="b is down"):
        feedback(config, judge(), [first[0], models(limit=2)[1], first[2]])
    assert len(first[0].asked) == 5
    with pytest.raises(UserError, match="judge is down"):
        feedback(config, judge(limit=4), models())
    assert not config.out.exists()
    last, rest = judge(), models()
    feedback(config, last, rest)
    assert config.out.read_text() == whole.out.read_text()
    assert not any(model.asked for model in rest)
    assert len(last.teacher.asked) == 24 - 4
    feedback(config.but({"against": "worst"}), last, rest)
    assert len(last.teacher.asked) == 20
    with config.prompts.open("a") as file:
        file.write("question 9\n")
    feedback(config, last, rest)
    assert len(pairs(config)) == 9
    assert pairs(config)[:8] == pairs(whole)


class Narrow(Program):
    """Takes nothing long."""

    def answer(self, asked, sampling):
        refusals = Refusals(asked)
        for i, one in enumerate(asked):
            if "LONG" in one.messages[-1]["content"].split("[Answer]")[0]:
                if failed := refusals.add(i, UserError("too long")):
                    raise failed
                continue
            refusals.others = True
            yield from ((i, written) for _, written in super().answer([one], sampling))
        yield from refusals.passed()


def test_prompts_that_are_too_long_for_the_judge_end_nothing_wherever_they_stand(config, monkeypatch, capsys):
    monkeypatch.setattr(journal, "TOGETHER", 90)  # questions about ten prompts
    texts = ["LONG one", "short", "short, too", *(f"LONG {n}" for n in range(30)), "the last"]
    config.prompts.write_text("\n".join(texts))

    def narrow(limit=10**6):
        return judge_by_template(Narrow("judge", by_length, limit), ["honesty", "helpfulness", "truthfulness"])

    with pytest.raises(UserError, match="judge is down"):
        feedback(config, narrow(limit=19), models())
    assert (feedback(config, narrow(), models()).pairs, len(pairs(config))) == (3, 3)
    assert "prompts.txt:4: too long; passed over" in capsys.readouterr().err
    config.prompts.write_text("\n".join(text for text in texts if "LONG" in text))
    with pytest.raises(UserError, match=r"prompts\.txt:1: too long\nNone of the first 8 prompts is taken"):
        feedback(config.but({"out": config.out.with_name("none.jsonl")}), narrow(), models())


def test_what_is_cut_off_is_no_rating_and_never_preferred(config, capsys):
    class Cut(Program):
        def answer(self, asked, sampling):
            for i, written in super().answer(asked, sampling):
                yield (
                    i,
                    written._replace(finish="length" if "question 0" in asked[i].messages[-1]["content"] else "stop"),
                )

    cut = Cut("cut", lambda text, copy: "x" * 7)
    done = feedback(config, judge(), [*models()[:2], cut])
    assert (done.pairs, done.cut, done.spoilt) == (8, 1, 0)
    assert [row["chosen_model"] for row in pairs(config)] == ["b", *["cut"] * 7]
    assert pairs(config)[0]["rejected_model"] == "a"
    told = capsys.readouterr().err
    assert "1 answers cut off at max_new_tokens=512, of which none is preferred" in told
    assert "ratings: 24/24" in told
    two = config.but({"out": config.out.with_name("two.jsonl")})
    done = feedback(two, judge(), [models()[0], cut])
    assert (done.pairs, done.spoilt, done.ties) == (7, 1, 0)
    brief = judge_by_template(Cut("brief", by_length), ["honesty"], max_new_tokens=9)
    done = feedback(two, brief, models())
    assert (done.pairs, done.unread, done.unsaid, done.lacking) == (7, 3, 3, 1)
    assert brief.sampling.max_new_tokens == 9
    assert "3 answers without a rating that could be read (3 cut off: judge_max_new_tokens)" in capsys.readouterr().err


def test_a_model_may_answer_more_than_once_and_few_of_many_each_prompt(config):
    drawn = Program("drawn", lambda text, copy: "x" * (copy + 1))
    feedback(config, judge(), [drawn, drawn, drawn])
    assert {(row["chosen"], row["rejected"]) for row in pairs(config)} == {("xxx", "x"), ("xxx", "xx")}
    assert len(drawn.asked) == 24
    some = models()
    feedback(config.but({"answers": 2}), judge(), some)
    assert sum(len(model.asked) for model in some) == 16
    assert all(model.asked for model in some)


def test_mistakes_are_told_before_anybody_is_asked(config):
    def fails(match, config=config, given=None):
        with pytest.raises(UserError, match=match):
            feedback(config, judge(), given or models())

    fails("at least 2, .* not 1 of them", given=models()[:1])
    fails("at least 2, .* not answers=4 of 3", config.but({"answers": 4}))
    fails("the same at temperature=0", config.but({"temperature": 0}), given=[models()[0]] * 2)
    fails("name another file", config.but({"out": config.prompts}))
    config.out.write_text("mine\n")
    fails("something else's")
    assert config.out.read_text() == "mine\n"
    with pytest.raises(UserError, match=r"no aspect named helpfulnes; did you mean helpfulness.*question of your own"):
        judge(aspects=["helpfulnes"])
    with pytest.raises(UserError, match=r"no \{answer\}"):
        judge_by_template(Program("judge", by_length), template="{prompt} {aspect}")


def test_where_nothing_differs_there_is_no_file(config):
    with pytest.raises(UserError, match="no pairs: 8 ties; all that was said is in"):
        feedback(config, judge_by_template(Program("judge", lambda *_: "5"), ["truthfulness"]), models())
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Good, but 2 mistakes.\nRating: 7", 7.0),
        ("**Rating:** 8/10", 8.0),
        ("Rating (1-10): 6.5", 6.5),
        ("Score = 9 out of 10.", 9.0),
        ("Rating: 3\n\nOn reflection, rating: 4.", 4.0),
        ("10", 10.0),
        ("I give it 4.", 4.0),
        ("The rating is 8, then.", 8.0),
        ("Ratings: \\boxed{7}", 7.0),
        ("Rating: eight, since 2 facts", None),
        ("The answer names 3 of the planets that were asked for.", None),
        ("Rating: 11", None),
        ("Rating: -3", None),
        ("2 things are wrong in 3 places", None),
        ("", None),
    ],
)
def test_ratings_are_read_however_they_are_written(text, expected):
    assert rating(text) == expected


def test_what_an_answer_says_in_braces_stays_there():
    (asked,) = judge_by_template(Program("judge", by_length), ["honesty"]).questions("a {answer}", "{prompt}", "here")
    text = asked.messages[0]["content"]
    assert "[Request]\na {answer}\n" in text
    assert "[Answer]\n{prompt}\n" in text
    assert ASPECTS["honesty"] in text


def test_a_reward_model_judges_as_it_scores():
    tokenizer = with_chat(TrainBPE(vocab=270).build(["one two three, four"] * 3))
    shape = small_config("llama2", vocab=tokenizer.size, classes=1)
    model = TextEncoder(Loaded(shape, decoder(shape), tokenizer, card={"answers": {"chat": True}}))
    turns = [[{"role": "user", "content": "one"}, {"role": "assistant", "content": text}] for text in ("two", "four")]
    said = dict(RewardTeacher(model, "reward").answer([Asked(talk) for talk in turns], Sampling()))
    expected = model.score(["one"] * 2, ["two", "four"])
    torch.testing.assert_close(torch.tensor([float(said[i].text) for i in range(2)]), expected)
    with pytest.raises(UserError, match="neither chats nor scores"):
        RewardTeacher(TextEncoder(Loaded(shape, decoder(shape), tokenizer)), "other")


def test_services_are_told_apart_by_their_models_names(config, monkeypatch):
    with serving() as service:
        asked = [f"models={service.url}#small,{service.url}#large", f"prompts={config.prompts}", f"out={config.out}"]
        told = ["template=Rate {answer} to {prompt} by {aspect}", "aspects=helpfulness"]
        result = CliRunner().invoke(app, ["feedback", f"{service.url}/v1#judge", *asked, *told, "--key", "secret"])
        assert isinstance(result.exception, UserError)  # the service says the same, whoever it is asked for
        assert "8 prompts with fewer than two different answers" in str(result.exception)
        assert {body["model"] for body in service.seen} == {"small", "large", "judge"}
        assert service.keys == {"Bearer secret"}


def test_a_key_goes_to_no_stranger(capsys):
    urls = ["https://a.org/v1#x", "https://a.org/v1#y", "http://localhost:1/v1"]
    assert keys_of(urls[:2], ["k"]) == dict.fromkeys(urls[:2], "k")
    assert keys_of(urls, ["https://a.org=k=="]) == {urls[0]: "k==", urls[1]: "k==", urls[2]: None}
    assert keys_of(urls, ["http://localhost:1=own", "k"])[urls[0]] == "k"
    assert not any(keys_of(urls, ["https://b.org=k"]).values())
    assert keys_of(["HTTPS://A.org:443/v1"], ["https://a.org=k"]) == {"HTTPS://A.org:443/v1": "k"}
    assert keys_of(["https://a.org:8443/v1"], ["https://a.org=k"]) == {"https://a.org:8443/v1": None}
    assert "the keys of https://b.org, since" in capsys.readouterr().err
    with pytest.raises(UserError, match="no address of a service"):
        keys_of(["https://a.org:x/v1"], ["k"])
    for keys in (["k"], ["k", "l"]):
        with pytest.raises(UserError, match="say whose each key is"):
            keys_of(urls, keys)
