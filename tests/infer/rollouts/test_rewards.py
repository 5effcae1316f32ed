"""What answers are worth by rules that can be checked."""

import pytest
import torch

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.infer.rollouts.rewards import Answer, Exact, Length, Pattern, Unfinished, same, total

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


def test_a_reward_that_is_no_number_is_refused():
    class Broken(Config):
        def build(self, device):
            return lambda answers: [float("nan")] * len(answers)

    with pytest.raises(UserError, match="reward Broken is nan for the answer 'yes'"):
        total((Broken(),), CPU)([answer("yes")])


def test_a_pattern_must_compile():
    with pytest.raises(ValueError, match="is no regular expression"):
        Pattern(pattern="(")
