"""What an answer is worth: rules that can be checked, reward models, or a user's own.

A reward config has `weight`, and `build(device)` makes a function of it: answers → a number each. One of a user's own
is given as an object or as "module:Class" (see onefold.core.config.Slot).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from torch import Tensor

from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.data.text.chat.answers import Said


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt, and what would have been right ("" where nobody knows)."""

    prompt: Said
    text: str
    right: str
    tokens: int  # that it wrote, its end included
    ended: bool  # by itself; False: it was cut off
    risky: bool = False  # what it answers is tagged so


Score = Callable[[Sequence[Answer]], Sequence[float]]
SURE = 1e-3  # as near to 0 and 1 as a rule's probability comes
COMBINED = "combined are reward models, and rules that say 0 to 1"
NUMBER = re.compile(r"[-+]?[$€£]?\d[\d,]*(?:\.\d+)?%?")


def _compiles(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


class Exact(Config):
    """1 where the answer is right, as the data's column has it, else 0. Numbers are compared as numbers.

    `pattern`: what of the text is the answer, the first group of its last match (r"#### (.*)"); None: all of it.
    """

    kind: Literal["exact"] = "exact"
    weight: float = 1.0
    pattern: str | None = None

    _check = field_validator("pattern")(_compiles)

    def build(self, device: torch.device) -> Score:
        found = None if self.pattern is None else re.compile(self.pattern)

        def said(text: str) -> str | None:
            if found is None:
                return text
            matches = list(found.finditer(text))
            return matches[-1][1 if found.groups else 0] if matches else None

        def score(answers: Sequence[Answer]) -> list[float]:
            if any(not answer.right for answer in answers):
                raise UserError("reward exact needs the right answers: a column of the prompts' table (data.columns)")
            given = [said(answer.text) for answer in answers]
            return [float(text is not None and same(text, answer.right)) for text, answer in zip(given, answers)]

        return score


class Pattern(Config):
    """1 where the regular expression is found in the answer, else 0; with `whole`, where all of it fits."""

    kind: Literal["pattern"] = "pattern"
    weight: float = 1.0
    pattern: str
    whole: bool = False

    _check = field_validator("pattern")(_compiles)

    def build(self, device: torch.device) -> Score:
        compiled = re.compile(self.pattern)
        fits = compiled.fullmatch if self.whole else compiled.search
        return lambda answers: [float(fits(answer.text) is not None) for answer in answers]


class Length(Config):
    """−|tokens − target| / target: answers of `target` tokens are best."""

    kind: Literal["length"] = "length"
    weight: float = 1.0
    target: int = Field(ge=1)

    def build(self, device: torch.device) -> Score:
        return lambda answers: [-abs(answer.tokens - self.target) / self.target for answer in answers]


class Unfinished(Config):
    """−1 for an answer that was cut off, else 0."""

    kind: Literal["unfinished"] = "unfinished"
    weight: float = 1.0

    def build(self, device: torch.device) -> Score:
        return lambda answers: [-float(not answer.ended) for answer in answers]


class RewardModel(Config):
    """What a reward model says (objective.kind=reward), which is opened from `model`."""

    logit: ClassVar = True  # σ of it is a probability (Bradley–Terry)
    kind: Literal["reward_model"] = "reward_model"
    weight: float = 1.0
    model: str

    def build(self, device: torch.device) -> Score:
        from onefold.infer.model import load

        model: Any = load(self.model, device)
        if not hasattr(model, "score"):
            raise UserError(f"{self.model} scores no answers: train a reward model with objective.kind=reward")
        return lambda answers: model.score([a.prompt for a in answers], [a.text for a in answers]).tolist()


Single = Annotated[Exact | Pattern | Length | Unfinished | RewardModel, Slot()]


class Combined(Config):
    """logit R, R = R_safety where the prompt is tagged as risky or R_safety < threshold, else R_helpfulness (Llama 2,
    arXiv 2307.09288, section 3.2.3). Whoever learns from it whitens it over a phase: PPO's `whiten_rewards`.

    Each R is a probability: σ of what a reward model says, or a rule's share from 0 to 1, which lengths are not. A
    config of one's own says with `logit = True` that its σ is meant.
    """

    kind: Literal["combined"] = "combined"
    weight: float = 1.0
    helpfulness: Single
    safety: Single
    threshold: float = Field(default=0.15, gt=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> "Combined":
        parts = (self.helpfulness, self.safety)
        if below := [part for part in parts if isinstance(part, Length | Unfinished)]:
            raise ValueError(f"{below[0].kind} is never above 0: {COMBINED}")
        if any(getattr(part, "weight", 1.0) != 1.0 for part in parts):
            raise ValueError("of two rewards that are combined one counts at a time: only both together have a weight")
        return self

    def build(self, device: torch.device) -> Score:
        helpfulness, safety = (_logits(part, device) for part in (self.helpfulness, self.safety))
        low = math.log(self.threshold / (1 - self.threshold))

        def score(answers: Sequence[Answer]) -> list[float]:
            both = zip(answers, helpfulness(answers), safety(answers))
            return [safe if answer.risky or not safe >= low else helpful for answer, helpful, safe in both]

        return score


def _logits(reward: Config, device: torch.device) -> Score:
    """What a reward says as logits of probabilities, rules' no further from 0 than ±7: certainty would be infinite."""
    score = reward.build(device)
    if getattr(reward, "logit", False):
        return score

    def logits(answers: Sequence[Answer]) -> list[float]:
        found = [float(value) for value in score(answers)]
        if beyond := [value for value in found if not 0 <= value <= 1]:
            raise UserError(f"reward {kind_of(reward)} is {beyond[0]:g}: {COMBINED}")
        return torch.tensor(found, dtype=torch.float64).logit(SURE).tolist()

    return logits


AnyReward = Annotated[Exact | Pattern | Length | Unfinished | RewardModel | Combined, Slot()]


def _some(rewards: tuple[Config, ...]) -> tuple[Config, ...]:
    """No Field(min_length=1), which also complains of a list whose only reward is refused."""
    if not rewards:
        raise ValueError("give one reward at least")
    return rewards


# A single reward stands for a list of one, which is what one writes on a command line.
Rewards = Annotated[
    tuple[AnyReward, ...],
    AfterValidator(_some),
    BeforeValidator(lambda given: given if isinstance(given, list | tuple) else (given,)),
]


def total(rewards: Sequence[Config], device: torch.device) -> Callable[[Sequence[Answer]], Float[Tensor, " N"]]:
    """Σ weight · reward. Raises UserError where one is no number: whoever maximises it would be led anywhere."""
    built = [(reward, reward.build(device)) for reward in rewards]

    def score(answers: Sequence[Answer]) -> Float[Tensor, " N"]:
        found = torch.zeros(len(answers))
        for reward, one in built:
            values = torch.tensor([float(value) for value in one(answers)])
            if len(bad := torch.nonzero(~torch.isfinite(values))):
                value, text = values[int(bad[0])].item(), answers[int(bad[0])].text
                raise UserError(f"reward {kind_of(reward)} is {value} for the answer {text[:60]!r}")
            found += getattr(reward, "weight", 1.0) * values
        return found

    return score


def kind_of(reward: Config) -> str:
    """What people call it."""
    return getattr(reward, "kind", type(reward).__name__)


def same(said: str, right: str) -> bool:
    """Whether two answers are the same number, or else the same words."""
    numbers = _number(said), _number(right)
    if None not in numbers:
        return math.isclose(*numbers, rel_tol=1e-9, abs_tol=1e-12)
    return said.split() == right.split()


def _number(text: str) -> float | None:
    text = text.strip().rstrip(".")
    return float(re.sub(r"[^\d.+-]", "", text)) if NUMBER.fullmatch(text) else None
