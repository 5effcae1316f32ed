"""Reinforcement learning from rewards: Llama 2's rejection sampling and PPO (Touvron et al. 2023, arXiv 2307.09288,
sections 3.2.3 and 3.3; Ouyang et al. 2022, arXiv 2203.02155) and GRPO (Shao et al. 2024, arXiv 2402.03300).

    onefold train rlhf data=prompts.jsonl start=path/to/chat-model reward=runs/reward method=ppo
    onefold train rlhf data=prompts.jsonl start=path/to/chat-model reward=runs/helpful safety=runs/safe method=ppo
    onefold train rlhf data=questions.jsonl start=path/to/chat-model method=grpo        # "answer" says what is right

Claim: a model that is fine-tuned on the best of several of its own answers, or that follows the policy gradient of
what they are worth, writes answers that are worth more; a price on the distance to where it began keeps it a model
of language.

Deviations: GRPO takes one reward for a whole answer. The check judges by a synthetic reward, which is known, and says
nothing of people.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.data.text.pairs.synthetic import NOUNS
from onefold.infer.model import Model, as_writer, load
from onefold.infer.rollouts.data import RolloutData
from onefold.infer.rollouts.rewards import Answer, AnyReward, Combined, Exact, RewardModel, Score
from onefold.objectives.policy import GRPO, Imitation
from onefold.objectives.ppo import PPO
from onefold.recipes.alignment import _preferences as synthetic
from onefold.recipes.alignment import reward as reward_models
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Constant
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

Method = Literal["grpo", "ppo", "best_of"]
METHODS: dict[str, tuple[GRPO | PPO | Imitation, dict[str, int], float]] = {
    "grpo": (GRPO(), {"prompts": 16, "samples": 64}, 1e-6),
    "ppo": (PPO(kl=0.01), {"prompts": 512, "samples": 1}, 1e-6),
    "best_of": (Imitation(), {"prompts": 64, "samples": 16, "best": 1}, 1e-5),
}  # objective, data and learning rate


def recipe(
    data: str | None = None,
    start: str | None = None,
    method: Method = "grpo",
    reward: str | None = None,
    safety: str | None = None,
) -> Run:
    """Settings near the papers'. data: a file of prompts; start: a chat model; reward: a reward model; None: the data
    say what is right; safety: another one, which counts where a prompt is tagged as risky or an answer may do harm."""
    if not data or not start:
        raise UserError("rlhf answers prompts, beginning with a model that chats: give data=FILE start=MODEL")
    if method not in METHODS:
        raise UserError(f"there is no method {method}; there are {', '.join(METHODS)}")
    if safety and not reward:
        raise UserError("safety= counts beside a reward model of what is helpful: give reward=MODEL, too")
    objective, sizes, rate = METHODS[method]
    paid: AnyReward = RewardModel(model=reward) if reward else Exact()
    if safety:
        paid = Combined(helpfulness=paid, safety=RewardModel(model=safety))
        objective = objective.but({"whiten_rewards": True}) if isinstance(objective, PPO) else objective
    return Run(
        data=RolloutData(path=data, rewards=(paid,), context=1024, **sizes),
        start=start,
        objective=objective,
        optimizer=AdamWConfig(lr=rate, betas=(0.9, 0.95), weight_decay=0.1 if method == "ppo" else 0.0),
        trainer=TrainerConfig(steps=400, batch=64, schedule=Constant(warmup=0.03), evaluate_every=50, skip=None),
        out=f"runs/rlhf-{method}",
    )


def tiny(
    data: str | None = None,
    start: str | None = None,
    method: Method = "grpo",
    reward: str | None = None,
    safety: str | None = None,
) -> Run:
    """A minute on two cores: a small model; without one, the synthetic world of the check, which is made first."""
    known = not data and not start
    if known:
        world = synthetic.world(0)
        data, start = prompts(world.folder), str(world.start)
    run = recipe(data, start, method, reward, safety)
    sizes = {"prompts": 16, "samples": 8, "context": 128, "max_new_tokens": synthetic.LONGEST}
    sizes |= {"prompts": 32, "epochs": 4} if method == "best_of" else {"epochs": 2}
    trainer = {"steps": STEPS, "batch": 32, "evaluate_every": STEPS, "checkpoint_every": STEPS}
    return run.but(
        {f"data.{name}": value for name, value in sizes.items()}
        | {"trainer": trainer, "optimizer.lr": RATE, "optimizer.weight_decay": 0.0}
        | ({"data.context": synthetic.CONTEXT} if known else {})
        | ({"data.rewards": [KNOWN]} if known and not reward else {})
    )


# --- The check ------------------------------------------------------------------------------------------------------

STEPS, RATE = 64, 1e-3
CHOICES = (1, 2, 4, 8, 16)  # N of best-of-N
KNOWN = {"kind": "onefold.recipes.alignment.rlhf:Known"}
LEARNED: dict[str, dict[str, Any]] = {
    "best of 8, fine-tuned": {"method": "best_of"},
    "GRPO, β 0.04": {"method": "grpo"},
    "GRPO, β 0.4": {"method": "grpo", "objective.kl": 0.4},
    "PPO, β 0.05": {"method": "ppo", "objective.kl": 0.05},
}
ROUNDS = 4  # of rejection sampling before PPO, as many as Llama 2 had
FEW, LONG, EVERY = (
    48,
    144,
    16,
)  # pairs that a proxy learns from; steps of those who follow it, and between looks at them


class Known(Config):
    """The synthetic world's own reward. Its parts, of which one may be combined with the other, are logits: of being
    helpful, by adjectives, and of being safe, by not saying where."""

    logit: ClassVar = True
    weight: float = 1.0
    part: Literal["helpful", "safe"] | None = None

    def build(self, device: torch.device) -> Score:
        def score(answers: Sequence[Answer]) -> list[float]:
            return [self.of(answer.text) for answer in answers]

        return score

    def of(self, text: str) -> float:
        if self.part is None:
            return synthetic.reward(text)
        adjectives, places = synthetic.liked(text)
        return adjectives - 1.0 if self.part == "helpful" else 2.0 - 2.0 * places


def prompts(folder: Path, risky: Sequence[str] = ()) -> str:
    """The world's prompts, in a file, some of them tagged as risky."""
    file = folder / ("risky.jsonl" if risky else "prompts.jsonl")
    if not file.is_file():
        rows = [{"prompt": noun} | ({"risky": True} if noun in risky else {}) for noun in NOUNS]
        atomic_write(file, "".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def check(report: Report) -> None:
    """Best-of-N rises with N; every method raises the reward that it is paid for; PPO goes on where rejection sampling
    stops; one of two rewards counts at a time; reward against KL, and what comes of following a proxy."""
    worlds = [synthetic.world(seed) for seed in synthetic.SEEDS]
    chosen = np.array([[best_of(world, n) for n in CHOICES] for world in worlds])
    for i, n in enumerate(CHOICES[1:], 1):
        report.less(
            f"synthetic reward, best of {CHOICES[i - 1]}, against best of {n}",
            chosen[:, i - 1].tolist(),
            chosen[:, i].tolist(),
        )
    before = [world.measure(world.reference)[0] for world in worlds]
    report.note("synthetic reward of answers before", before)
    found: dict[str, np.ndarray] = {}
    for name, changes in LEARNED.items():
        found[name] = np.array([world.measure(_learned(world, name, changes)) for world in worlds])
        rewards, kl = found[name].T.tolist()
        report.less(f"synthetic reward of answers before, against after {name}", before, rewards)
        report.note(f"KL to the model before, nats an answer, {name}", kl)
    kls = [found[f"GRPO, β {beta}"][:, 1].tolist() for beta in ("0.4", "0.04")]
    report.less("KL of GRPO where it costs more, against less", *kls)
    _one_after_the_other(report, worlds)
    _two_rewards(report, worlds)
    best = np.mean([world.best(np.geomspace(0.25, 20, 24)[::-1].tolist()) for world in worlds], axis=0)
    curves = [Curve(best[:, 1], best[:, 0], "muted", "dashed", "the best")]
    priced = {
        name: points for name, points in found.items() if LEARNED[name]["method"] != "best_of"
    }  # else too far off
    for i, (name, points) in enumerate(priced.items()):
        rewards, kl = points.mean(0)
        curves.append(Curve(np.array([kl]), np.array([rewards]), f"series-{i + 1}", "points", name, marker="osD^"[i]))
    axes = Axis("KL to the model before, nats an answer"), Axis("synthetic reward")
    report.chart("reward against KL", draw(curves, *axes, title="Synthetic reward against KL", margin=130))
    _over_optimisation(report, worlds)


def best_of(world: synthetic.World, n: int) -> float:
    """The mean reward of the best of n answers to the same prompt, each answer used once."""
    found = []
    for noun in NOUNS:
        rewards = np.array([answer.reward for answer in world.sampled if answer.prompt == noun])
        found.append(rewards[: len(rewards) // n * n].reshape(-1, n).max(1).mean())
    return float(np.mean(found))


def _one_after_the_other(report: Report, worlds: Sequence[synthetic.World]) -> None:
    """A few rounds of rejection sampling, and PPO from there."""
    name = "rounds of best of 8"
    rounds = {"method": "best_of", "trainer.steps": 4 * ROUNDS, "trainer.checkpoint_every": 4 * ROUNDS}
    sampled, both = [], []
    for world in worlds:
        sampled.append(world.measure(_learned(world, name, rounds))[0])
        after = {"method": "ppo", "objective.whiten_rewards": True, "start": str(world.folder / _slug(name))}
        both.append(world.measure(_learned(world, "PPO after rounds", after))[0])
    report.less(
        f"synthetic reward after {ROUNDS} rounds of rejection sampling, against PPO from there",
        sampled,
        both,
    )


def _two_rewards(report: Report, worlds: Sequence[synthetic.World]) -> None:
    """Every other prompt is risky: there, safety is all that counts; at the others an answer that is safe enough may
    be as helpful as it can."""
    risky = NOUNS[::2]
    parts = {name: Known(part=name) for name in ("helpful", "safe")}
    paid = {"kind": "combined"} | {
        name: {**KNOWN, "part": part} for name, part in (("helpfulness", "helpful"), ("safety", "safe"))
    }
    found = []  # before and after: (helpful, safe) of risky prompts, of the others
    for world in worlds:
        changes = {"method": "ppo", "objective.whiten_rewards": True, "data.path": prompts(world.folder, risky)}
        after = _learned(world, "two rewards", changes | {"data.rewards": [paid]})
        rows = []
        for model in (world.reference, after):
            said = world.answers(model)
            sides = [[a.text for a in said if (a.prompt in risky) == side] for side in (True, False)]
            rows.append([[np.mean([p.of(text) for text in side]) for p in parts.values()] for side in sides])
        found.append(rows)
    points = np.array(found)  # [world, before and after, risky or not, part]
    for side, part, name in ((0, 1, "safety at risky prompts"), (1, 0, "helpfulness at the others")):
        before, after = points[:, :, side, part].T.tolist()
        report.less(f"two rewards, logit of {name}, before, against after", before, after)
    for side, part, name in ((0, 0, "helpfulness at risky prompts"), (1, 1, "safety at the others")):
        before, after = points[:, :, side, part].T.tolist()
        report.note(f"two rewards, logit of {name}, before", before)
        report.note(f"two rewards, logit of {name}, after", after)


def _over_optimisation(report: Report, worlds: Sequence[synthetic.World]) -> None:
    """PPO, at no price, for what a reward model says that has learned from few pairs (Gao et al. 2022, "Scaling Laws
    for Reward Model Overoptimization", arXiv 2210.10760). Both rewards in deviations from what they were before."""
    paths = np.array([_followed(world) for world in worlds])  # [world, look, (KL, proxy, synthetic)]
    kl, proxy, gold = paths.transpose(2, 0, 1)
    report.less("the proxy before, against after it was followed", proxy[:, 0].tolist(), proxy[:, -1].tolist())
    peaks = gold.argmax(1)
    report.note("synthetic reward then, deviations above that before", gold[:, -1].tolist())
    report.note("the largest on the way", gold.max(1).tolist())
    report.note("KL where it was largest, nats an answer", [path[at] for path, at in zip(kl.tolist(), peaks)])
    report.note("KL at the end", kl[:, -1].tolist())
    fell = (gold.max(1) - gold[:, -1] > 0.25).sum()
    report.note("worlds in which it fell again, by a quarter of a deviation or more", f"{fell} of {len(worlds)}")
    curves = []
    for color, name, values in (("series-1", "the proxy", proxy), ("series-2", "the known one", gold)):
        curves += [Curve(x, y, color, "faint") for x, y in zip(kl, values)]
        curves.append(Curve(kl.mean(0), values.mean(0), color, "dots", name))
    axes = Axis("KL to the model before, nats an answer"), Axis("reward, in deviations above the model before")
    report.chart("following a proxy", draw(curves, *axes, title="Two rewards against KL, one of them followed"))


def _followed(world: synthetic.World) -> list[tuple[float, float, float]]:
    pairs, few = Path(world.tables()[0]), world.folder / "few.jsonl"
    if not few.is_file():
        atomic_write(few, "".join(pairs.read_text().splitlines(keepends=True)[:FEW]))
    proxy = reward_models.learned(world, reward_models.tiny(str(few), str(world.start)), "proxy").out
    changes = {"method": "ppo", "objective.kl": 0.0, "objective.whiten_rewards": True}
    changes |= {"data.rewards": [{"kind": "reward_model", "model": str(proxy)}]}
    changes |= {"trainer": {"steps": LONG, "checkpoint_every": EVERY, "keep": LONG // EVERY}}
    _learned(world, "follows a proxy", changes)
    folder, judge = world.folder / _slug("follows a proxy") / "checkpoints", load(proxy)
    places = [world.start, *(folder / str(step) for step in range(EVERY, LONG + 1, EVERY))]
    found = []
    for place in places:
        model = as_writer(load(place), place)
        said = world.answers(model)
        scores = judge.score([answer.prompt for answer in said], [answer.text for answer in said]).numpy()
        found.append((world.distance(model, said), scores, np.array([answer.reward for answer in said])))
    first = found[0]
    return [(kl, *((now.mean() - was.mean()) / was.std() for now, was in zip(both, first[1:]))) for kl, *both in found]


def _learned(world: synthetic.World, name: str, changes: dict[str, Any]) -> Model:
    """What becomes of a run of `tiny` with these changes."""
    own = {key: value for key, value in changes.items() if key != "method"}
    run = tiny(prompts(world.folder), str(world.start), changes["method"])
    more = {"data.rewards": [KNOWN], "data.held_out": 0.0, "data.context": synthetic.CONTEXT}
    where = {"seed": world.seed, "out": str(world.folder / _slug(name))}
    result = whole(train(run.but(more | where | own)))
    return as_writer(load(result.out), result.out)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower().replace("β", "beta"))
