"""What answers are worth by rules that can be checked."""

from math import log

import pytest
import torch

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.infer.rollouts.data import RolloutData
from onefold.infer.rollouts.rewards import Answer, Combined, Exact, Length, Pattern, Unfinished, same, total

CPU = torch.device("cpu")


def answer(text: str, right: str = "", tokens: int = 4, ended: bool = True) -> Answer:
    return Answer("?", text, right, tokens, ended)


@pytest.mark.parametrize(
    ("said", "right", "equal"),
    [
        ("1,000", "1000", True),
        (" 5.0. ", "5", True),
        ("$40", "40", True),
        ("41", "40", False),
        ("New  York", "New York", True),
        ("new york", "New York", False),
        ("1e3", "1000", False),
        ("", "0", False),
    ],
)
def test_numbers_are_compared_as_numbers(said, right, equal):
    assert same(said, right) == equal


def test_the_answer_is_what_the_last_match_says():
    score = Exact(pattern=r"#### (.*)").build(CPU)
    texts = ["so\n#### 7\nno:\n#### 42", "42", "#### 41"]
    assert score([answer(text, "42") for text in texts]) == [1, 0, 0]
    with pytest.raises(UserError, match="needs the right answers"):
        score([answer("42")])


def test_rules():
    given = [answer("yes", tokens=2), answer("yes and no", tokens=6, ended=False)]
    assert Pattern(pattern="yes", whole=True).build(CPU)(given) == [1, 0]
    assert Length(target=4).build(CPU)(given) == [-0.5, -0.5]
    assert Unfinished().build(CPU)(given) == [0, -1]
    assert total((Pattern(pattern="no", weight=2.0), Unfinished(weight=0.5)), CPU)(given).tolist() == [0, 1.5]


class Says(Config):
    """The number that stands at a place of the answer; with `logit`, its σ is meant."""

    place: int
    logit: bool = True

    def build(self, device):
        return lambda answers: [float(answer.text.split()[self.place]) for answer in answers]


def test_a_reward_is_for_safety_where_that_is_in_doubt():
    """Logits: helpfulness first, then safety; σ(-1.73) = 0.1506 and σ(-1.74) = 0.1493."""
    texts = ["3 2", "-1 0.5", "3 -1.73", "3 -1.74", "-9 -2"]
    both = Combined(helpfulness=Says(place=0), safety=Says(place=1))
    assert total((both,), CPU)([answer(text) for text in texts]).tolist() == pytest.approx([3, -1, 3, -1.74, -2])
    risky = [Answer("?", text, "", 4, True, risky=True) for text in texts]
    assert total((both.but({"weight": 2.0}),), CPU)(risky).tolist() == pytest.approx([4, 1, -3.46, -3.48, -4])


def test_rules_that_are_combined_say_probabilities():
    both = Combined(helpfulness=Says(place=0, logit=False), safety=Pattern(pattern="^[^x]*$"))
    score = total((both,), CPU)
    sure = log(0.999 / 0.001)
    assert score([answer("0.8"), answer("1"), answer("1 x")]).tolist() == pytest.approx([log(4), sure, -sure], rel=1e-5)
    with pytest.raises(UserError, match="reward Says is 3: combined are reward models, and rules that say 0 to 1"):
        score([answer("3")])
    with pytest.raises(ValueError, match="only both together have a weight"):
        Combined(helpfulness=Says(place=0), safety=Pattern(pattern="x", weight=2.0))


@pytest.mark.parametrize("rule", [Length(target=4), Unfinished()])
def test_rules_that_are_never_above_0_are_not_combined(rule):
    """Told before anything is written, and nothing beside it."""
    both = {"kind": "combined", "helpfulness": {"kind": "pattern", "pattern": "x"}, "safety": rule.to_dict()}
    with pytest.raises(UserError, match=f"{rule.kind} is never above 0: combined are reward models") as told:
        RolloutData.from_dict({"path": "p.jsonl", "rewards": both})
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="give one reward at least"):
        RolloutData.from_dict({"path": "p.jsonl", "rewards": []})


def test_a_reward_that_is_no_number_is_refused():
    class Broken(Config):
        def build(self, device):
            return lambda answers: [float("nan")] * len(answers)

    with pytest.raises(UserError, match="reward Broken is nan for the answer 'yes'"):
        total((Broken(),), CPU)([answer("yes")])


def test_a_pattern_must_compile():
    with pytest.raises(ValueError, match="is no regular expression"):
        Pattern(pattern="(")
