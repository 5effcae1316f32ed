"""Zephyr (Tunstall et al. 2023, "Zephyr: Direct Distillation of LM Alignment", arXiv 2310.16944): a small model that
takes over what larger ones prefer, without people.

    onefold train zephyr start=mistral chat=dialogues.jsonl                      # dSFT: what a teacher said
    onefold feedback JUDGE prompts=prompts.jsonl models=A,B,C,D out=pairs.jsonl  # AIF: what a judge prefers
    onefold train zephyr stage=dpo start=runs/zephyr-sft data=pairs.jsonl        # dDPO

Claim: fine-tuning on dialogues of a teacher (dSFT) makes a model that answers; DPO on pairs of which a teacher rated
one higher (dDPO) brings it near to models that learned from people, without a single sample of its own. Without dSFT,
DPO alone does not learn to answer (section 5.2, table 3).

Deviations: `feedback` rates answers one by one. The check's models and judge are programs, and say nothing of language.
"""

from pathlib import Path
from statistics import fmean
from typing import Literal

from onefold.core.errors import UserError
from onefold.data.text.chat.answers import read_answers
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.preferences import PreferenceData
from onefold.infer.model import Model, as_writer, load
from onefold.infer.teaching.feedback import FeedbackConfig, feedback
from onefold.infer.teaching.judges import judge_by_template
from onefold.objectives.preference import DPO, Preference
from onefold.recipes.alignment import _feedback as world
from onefold.recipes.alignment import _teaching
from onefold.study.check import Report, whole
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine, Linear
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

Stage = Literal["sft", "dpo"]


def recipe(
    start: str | None = None,
    stage: Stage = "sft",
    chat: str = "dialogues.jsonl",
    data: str = "pairs.jsonl",
) -> Run:
    """Section 4.3: one epoch of 200,000 dialogues, packed, then three of 62,000 pairs; all weights of Mistral 7B."""
    if stage not in ("sft", "dpo"):
        raise UserError(f"there is no stage {stage}: sft fine-tunes on dialogues, dpo then learns from pairs")
    if not start:
        of = "a pre-trained model" if stage == "sft" else "the run of stage=sft"
        raise UserError(f"zephyr goes on from a model: give start=MODEL, {of}")
    if stage == "sft":
        return Run(
            data=ChatData(path=chat, context=2048),
            start=start,
            optimizer=AdamWConfig(lr=2e-5, weight_decay=0.0),
            trainer=TrainerConfig(steps=272, batch=512, schedule=Cosine(warmup=0.1), evaluate_every=50),
            out="runs/zephyr-sft",
        )
    return Run(
        data=PreferenceData(path=data, context=1024, chat=True, skip_bad=True),
        start=start,
        objective=Preference(loss=DPO(beta=0.1)),
        optimizer=AdamWConfig(lr=5e-7, weight_decay=0.0),
        trainer=TrainerConfig(steps=5800, batch=32, schedule=Linear(warmup=0.1), evaluate_every=200),
        out="runs/zephyr-dpo",
    )


def tiny(
    start: str | None = None, stage: Stage = "sft", chat: str = "dialogues.jsonl", data: str = "pairs.jsonl"
) -> Run:
    """Short rows and few steps, for models of a million parameters."""
    run = recipe(start, stage, chat, data)
    batch = {"steps": STEPS, "batch": 32, "evaluate_every": STEPS, "checkpoint_every": STEPS}
    return run.but({"data.context": world.CONTEXT, "optimizer.lr": RATE, "trainer": batch})


# --- The check ------------------------------------------------------------------------------------------------------

STEPS, RATE = 80, 6e-5
OURS = "dDPO, best against random"


def check(report: Report) -> None:
    """Synthetic: a model that has read sentences learns from a teacher's dialogues, then from AI feedback."""
    found: dict[str, list[tuple[float, float]]] = {}
    right, ties = list[float](), list[float]()
    for seed in world.SEEDS:
        folder = Path(f"runs/check/zephyr/{seed}")
        base = world.base(folder, seed)
        taught = _teaching.student(world.dialogues(folder, seed), folder / "sft", seed, 150, base, world.CONTEXT)
        pairs = {against: folder / f"{against}.jsonl" for against in ("random", "worst")}
        for against, file in pairs.items():
            config = FeedbackConfig(prompts=_prompts(folder, seed), out=file, against=against, seed=seed)
            done = feedback(config, judge_by_template(world.Rater(), ["helpfulness"]), world.AUTHORS)
        ties.append((done.ties + done.lacking) / world.COMPARED)
        models = {
            "the base": load(base),
            "dSFT": taught,
            OURS: _learned(folder / "sft", pairs["random"], seed),
            "dDPO, best against worst": _learned(folder / "sft", pairs["worst"], seed),
            "dDPO without dSFT": _learned(base, pairs["random"], seed, "alone"),
        }
        for name, model in models.items():
            found.setdefault(name, []).append(world.measure(as_writer(model, name), seed))
        rows = [(row.prompt, row.answers) for row in read_answers(pairs["random"], "pairs")]
        right.append(fmean(world.quality(str(p), str(a)) > world.quality(str(p), str(b)) for p, (a, b) in rows))
    worth = {name: [quality for quality, _ in values] for name, values in found.items()}
    report.less("synthetic quality of answers: the base, against dSFT", worth["the base"], worth["dSFT"])
    report.less("synthetic quality of answers: dSFT, against dDPO after it", worth["dSFT"], worth[OURS])
    report.less("the same: dDPO without dSFT, against after it", worth["dDPO without dSFT"], worth[OURS])
    for name, values in found.items():
        report.note(f"synthetic quality of answers: {name}", worth[name])
        report.note(f"share of answers that are what was asked for: {name}", [share for _, share in values])
    report.note("share of pairs whose better answer is the preferred one", right)
    report.note("share of prompts that made no pair: ties, ratings that could not be read", ties)
    report.published("MT-Bench of dSFT and of dDPO after it (7B)", "6.64 and 7.00")
    report.published("MT-Bench of dDPO without dSFT (7B)", 4.76)


def _prompts(folder: Path, seed: int) -> Path:
    return _teaching.write(folder / "prompts.jsonl", [{"prompt": p} for p in world.prompts(seed)[0][: world.COMPARED]])


def _learned(start: Path, pairs: Path, seed: int, name: str = "") -> Model:
    run = tiny(str(start), "dpo", data=str(pairs)).but(
        {"seed": seed, "out": str(pairs.with_name(name or f"dpo-{pairs.stem}"))}
    )
    return load(whole(train(run)).out)
