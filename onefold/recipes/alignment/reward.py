"""A reward model, as Llama 2's (Touvron et al. 2023, "Llama 2: Open Foundation and Fine-Tuned Chat Models", arXiv
2307.09288, section 3.2).

    onefold train reward data=pairs.jsonl start=path/to/chat-model
    onefold score runs/reward 'Where is the key?' 'In the drawer.' 'Look for it yourself.'

Claim: a chat model whose head gives one number, trained to give the preferred answer of a pair the higher one, tells
which of two answers people would prefer. Where data say by how much an answer is better, that is the loss's margin.

Deviations: scores are kept near zero (Eisenstein et al. 2023, "Helping or Herding?", arXiv 2312.09244), which changes
no comparison. The check judges by a synthetic reward, which is known, and says nothing of people.
"""

import json
from math import log
from pathlib import Path

import numpy as np

from onefold.core.errors import UserError
from onefold.data.text.chat.preferences import PreferenceData
from onefold.data.text.pairs.synthetic import NOUNS
from onefold.infer.model import load
from onefold.infer.text_encoder import TextEncoder
from onefold.objectives.reward import Reward
from onefold.recipes.alignment import _preferences as synthetic
from onefold.study.check import Report, whole
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Result, Run, train
from onefold.training.trainer import TrainerConfig


def recipe(data: str | None = None, start: str | None = None) -> Run:
    """Llama 2's settings: one epoch, since more is learning by heart. data: a table of pairs; start: a chat model."""
    if not data or not start:
        raise UserError(
            "a reward model learns from pairs of answers, beginning with a chat model: data=FILE start=MODEL"
        )
    return Run(
        data=PreferenceData(path=data, context=1024, skip_bad=True),
        start=start,
        objective=Reward(centre=0.01),
        optimizer=AdamWConfig(lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1),
        trainer=TrainerConfig(
            steps=2000,
            batch=512,
            clip=1.0,
            schedule=Cosine(warmup=0.03, final=0.1),
            evaluate_every=200,
            checkpoint_every=200,
        ),
        out="runs/reward",
    )


def tiny(data: str | None = None, start: str | None = None) -> Run:
    """A minute on two cores: a small model; without one, the synthetic world of the check, which is made first."""
    changes = {"optimizer.lr": 1e-3, "data.context": 128, "data.held_out": 0.3}
    if not data and not start:
        world = synthetic.world(0)
        data, start = world.tables()[0], str(world.start)
        changes["data.context"] = synthetic.CONTEXT
    trainer = {"steps": STEPS, "batch": 32, "evaluate_every": 30, "checkpoint_every": 30}
    return recipe(data, start).but(changes | {"trainer": trainer})


# --- The check ------------------------------------------------------------------------------------------------------

STEPS = 60  # of 32 pairs: four epochs, of few pairs


def check(report: Report) -> None:
    """Held-out pairs ranked rightly, against chance and against lengths; and how scores follow the known reward."""
    ranked, by_length, ceiling, alike, first, means = ([] for _ in range(6))
    for seed in synthetic.SEEDS:
        world = synthetic.world(seed)
        result = learned(world, tiny(world.tables()[0], str(world.start)), "reward")
        model = _reward_model(result.out)
        dataset = result.run.data.prepare(result.out / "data", world.reference.tokenizer, keep=True)
        prompts, chosen, rejected = zip(*(map(json.loads, row) for row in dataset.texts("held_out")))
        texts = [[said[-1]["content"] for said in answers] for answers in (chosen, rejected)]
        gaps = model.score(prompts, chosen) - model.score(prompts, rejected)
        ranked.append(_rightly(gaps.tolist()))
        words = [len(c.split()) - len(r.split()) for c, r in zip(*texts)]
        by_length.append(
            max(_rightly(words), 1 - _rightly(words))
        )  # the longer or the shorter one, whichever is better
        ceiling.append(_rightly([synthetic.reward(c) - synthetic.reward(r) for c, r in zip(*texts)]))
        answers = world.sampled[: 16 * len(NOUNS)]
        scores = model.score([a.prompt for a in answers], [a.text for a in answers]).numpy()
        alike.append(float(np.corrcoef(scores, [a.reward for a in answers])[0, 1]))
        first.append(abs(result.log[0]["bt"] - log(2)))
        means.append(abs(float(scores.mean())))
    ours = "held-out pairs ranked rightly"
    report.less(f"{ours} by chance, against by the reward model", 0.5, ranked)
    report.less(f"{ours} by their lengths, against by the reward model", by_length, ranked)
    report.note(f"{ours} by the reward that people went by, who are not always sure", ceiling)
    report.note("correlation of scores with the synthetic reward, other answers", alike)
    report.note("distance of the first loss from ln 2", first)
    report.note("distance of the mean score from zero", means)
    report.published("accuracy of Llama 2's 70B reward model on Meta's helpfulness pairs", "63.2%")


def learned(world: synthetic.World, run: Run, name: str) -> Result:
    """What becomes of a run in a synthetic world, in a folder of this name there."""
    once = {"evaluate_every": STEPS, "checkpoint_every": STEPS}
    own = {"data.context": synthetic.CONTEXT, "seed": world.seed, "out": str(world.folder / name)}
    return whole(train(run.but({"trainer": once} | own)))


def _rightly(gaps: list[float]) -> float:
    """The share of pairs whose preferred answer is ahead; where neither is, one half."""
    return float(np.mean([0.5 if gap == 0 else float(gap > 0) for gap in gaps]))


def _reward_model(path: Path) -> TextEncoder:
    model = load(path)
    if not isinstance(model, TextEncoder):
        raise UserError(f"{path} is no reward model")
    return model
