"""DPO and its family (Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290), as Zephyr uses it
(Tunstall et al. 2023, arXiv 2310.16944, section 4: dDPO).

    onefold train dpo data=pairs.jsonl start=path/to/chat-model
    onefold train dpo data=pairs.jsonl start=path/to/chat-model loss=ipo
    onefold train dpo data=labels.jsonl start=path/to/chat-model loss=kto

Claim: what people prefer can be learned by a classification loss on pairs of answers, without a reward model and
without sampling, and the result is the policy that a reward model and KL-regularised reinforcement learning would aim
at. The other losses change what is asked of the log-probabilities: cDPO expects wrong labels, IPO sets the gap a
target, KTO needs no pairs, ORPO and SimPO no reference.

Deviations: one epoch of the size of UltraFeedback's, however many rows there are. The check judges by a synthetic
reward, which is known, and says nothing of people.
"""

from math import log
from typing import Any, Literal

import numpy as np

from onefold.core.errors import UserError
from onefold.data.text.chat.preferences import PreferenceData
from onefold.infer.model import as_writer, load
from onefold.objectives.preference import DPO, IPO, KTO, ORPO, Preference, SimPO
from onefold.recipes.alignment import _preferences as synthetic
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Result, Run, train
from onefold.training.trainer import TrainerConfig

LOSSES: dict[str, Preference | KTO] = {
    "dpo": Preference(loss=DPO()),
    "cdpo": Preference(loss=DPO(smoothing=0.1)),
    "ipo": Preference(loss=IPO()),
    "kto": KTO(),
    "orpo": Preference(loss=ORPO()),
    "simpo": Preference(loss=SimPO()),
}
Loss = Literal["dpo", "cdpo", "ipo", "kto", "orpo", "simpo"]


def recipe(data: str | None = None, start: str | None = None, loss: Loss = "dpo") -> Run:
    """Zephyr's settings. data: a table of pairs, for kto of labels. start: the model, fine-tuned on conversations."""
    if not data or not start:
        raise UserError("dpo learns from pairs of answers, from a chat model on: give data=FILE start=MODEL")
    if loss not in LOSSES:
        raise UserError(f"there is no loss {loss}; there are {', '.join(LOSSES)}")
    objective = LOSSES[loss]
    return Run(
        data=PreferenceData(path=data, task=objective.task, context=1024, skip_bad=True),
        start=start,
        objective=objective,
        optimizer=AdamWConfig(lr=5e-7, weight_decay=0.0),
        trainer=TrainerConfig(
            steps=1900, batch=32, clip=1.0, schedule=Linear(warmup=0.1), evaluate_every=200, checkpoint_every=200
        ),
        out=f"runs/{loss}",
    )


def tiny(data: str | None = None, start: str | None = None, loss: Loss = "dpo") -> Run:
    """A minute on two cores: a small model; without one, the synthetic world of the check, which is made first."""
    if not data and not start:
        world = synthetic.world(0)
        data, start = world.tables()[loss == "kto"], str(world.start)
    run = recipe(data, start, loss)
    changes = {"optimizer.lr": RATE, "data.context": synthetic.CONTEXT}
    return run.but(changes | {"trainer": {"steps": STEPS, "batch": 32, "evaluate_every": 40, "checkpoint_every": 40}})


# --- The check ------------------------------------------------------------------------------------------------------

STEPS = 80  # of 32 pairs: four epochs
RATE = 5e-4
BETAS = (1.0, 0.3, 0.1)  # of DPO; people's choices have β = 1
FAMILY: dict[str, dict[str, Any]] = {
    **{f"DPO, β {beta}": {"loss": "dpo", "objective.loss.beta": beta} for beta in BETAS},
    "cDPO, β 0.3": {"loss": "cdpo", "objective.loss.beta": 0.3},
    "IPO, β 2": {"loss": "ipo", "objective.loss.beta": 2.0},
    "KTO, β 0.3": {"loss": "kto", "objective.beta": 0.3},
    "ORPO": {"loss": "orpo"},
    "SimPO": {"loss": "simpo"},
}


def check(report: Report) -> None:
    """What losses are at the reference; reward and KL of the family beside the best that there is, over seeds."""
    worlds = [synthetic.world(seed) for seed in synthetic.SEEDS]
    before = [world.measure(world.reference)[0] for world in worlds]
    report.note("synthetic reward of answers before", before)
    found: dict[str, np.ndarray] = {}
    for name, changes in FAMILY.items():
        results = [_learned(world, name, changes) for world in worlds]
        _at_the_reference(report, name, results)
        found[name] = np.array([w.measure(as_writer(load(r.out), r.out)) for w, r in zip(worlds, results)])
        rewards, kl = found[name].T.tolist()
        if name.startswith("DPO"):
            report.less(f"synthetic reward of answers before, against after {name}", before, rewards)
        else:
            report.note(f"synthetic reward of answers after {name}", rewards)
        report.note(f"KL to the model before, nats an answer, {name}", kl)
        held_out = [next(r["held_out"] for r in reversed(result.log) if "held_out" in r) for result in results]
        if "accuracy" in held_out[0]:
            report.note(f"held-out pairs ranked rightly by {name}", [h["accuracy"] for h in held_out])
    means = np.array([found[f"DPO, β {beta}"].mean(0) for beta in BETAS])
    report.less("KL of DPO at the largest β, against the smallest", means[0, 1], means[-1, 1])
    _frontier(report, worlds, found)


def _learned(world: synthetic.World, name: str, changes: dict[str, Any]) -> Result:
    own = {key: value for key, value in changes.items() if key != "loss"}
    loss = changes["loss"]
    run = tiny(world.tables()[loss == "kto"], str(world.start), loss)
    place = "".join(c if c.isalnum() or c == "." else "-" for c in name.lower().replace("β", "beta"))
    once = {"evaluate_every": STEPS, "checkpoint_every": STEPS}
    return whole(train(run.but({**own, "trainer": once, "seed": world.seed, "out": str(world.folder / place)})))


def _at_the_reference(report: Report, name: str, results: list[Result]) -> None:
    """The loss of the first batch, before anything was learned, is known for all that have a reference."""
    beta = results[0].run.to_dict()["objective"].get("loss", {}).get("beta")
    known = {"DPO": log(2), "cDPO": log(2), "IPO": beta and 1 / (4 * beta**2), "KTO": 0.5}.get(name.split(",")[0])
    if known is not None:
        worst = max(abs(result.log[0]["loss"] - known) for result in results)
        report.less(f"{name}: first loss, largest difference to {known:.5f}", worst, 1e-5 * max(1, known))


def _frontier(report: Report, worlds: list[synthetic.World], found: dict[str, np.ndarray]) -> None:
    """Reward against KL: points of the family, and the line of the best."""
    betas = np.geomspace(0.25, 20, 24)[::-1]
    best = np.mean([world.best(betas.tolist()) for world in worlds], axis=0)  # [β, (reward, KL)]
    for name, points in found.items():
        rewards, kl = points.mean(0)
        report.note(f"share of the best reward gain at its KL, {name}", _share(rewards, kl, best))
    curves = [Curve(best[:, 1], best[:, 0], "muted", "dashed", "the best")]
    dpo = np.array([found[f"DPO, β {beta}"].mean(0) for beta in BETAS])
    curves.append(Curve(dpo[:, 1], dpo[:, 0], "series-1", "dots", "DPO, β 1 to 0.1"))
    for i, (name, points) in enumerate((n, p) for n, p in found.items() if not n.startswith("DPO")):
        rewards, kl = points.mean(0)
        mark = "sD^vP"[i]
        curves.append(Curve(np.array([kl]), np.array([rewards]), f"series-{i + 2}", "points", name, marker=mark))
    drawing = draw(
        curves,
        Axis("KL to the model before, nats an answer"),
        Axis("synthetic reward"),
        title="Synthetic reward against KL",
        margin=130,
    )
    report.chart("synthetic reward against KL", drawing)


def _share(reward: float, kl: float, best: np.ndarray) -> float:
    """Of what the best policy gains at this KL over the model before."""
    order = np.argsort(best[:, 1])
    start = best[order[0], 0]
    return float((reward - start) / (np.interp(kl, best[order, 1], best[order, 0]) - start))
