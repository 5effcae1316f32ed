"""DeepSpeed-MoE (Rajbhandari et al. 2022, arXiv 2201.05596): GPT with experts, then with fewer of them, then shallower.

    onefold train deepspeed_moe data=notes/                                    # PR-MoE; kind=moe for the standard one
    onefold train deepspeed_moe data=notes/ teacher=runs/deepspeed_moe         # the student of it: Mixture-of-Students

Claim: a mixture is as good as a dense model of five times its cost a token. With a dense layer beside the experts
(Residual) and most experts in the last layers (Pyramid) a third of the parameters do for that (section 4.1), and an
eighth of the layers less where a student learns from the whole model until it does better alone (section 4.2).

Deviations: the data were never published, so `data` is yours. Settings are those of the paper's released scripts, but
for fresh weights, which are GPT-2's (deviation 0.02 instead of 0.014). The teacher is left after seven tenths of the
steps, whatever the size. The student begins with fresh weights, as its layers have other numbers of experts.
"""

import json
import string
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np

from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.data.text.documents import LoadTokenizer, Source, TextData, TrainBPE
from onefold.models import families
from onefold.models.transformer import BlockConfig, DecoderConfig, count_parameters
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.position import RotaryConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.nn.sparse.routing import SwitchConfig
from onefold.objectives.distillation import Distillation
from onefold.recipes import _miniature as miniature
from onefold.recipes._miniature import SEEDS
from onefold.recipes.language.gpt2 import TINY_TRAINER
from onefold.study.check import Report, whole
from onefold.study.pages.charts import Axis, Curve, draw
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine, Linear
from onefold.training.run import Result, Run, train
from onefold.training.trainer import TrainerConfig

DEPTH, STUDENT = 24, 21
TAUGHT = 0.7  # of the steps, with the teacher


@dataclass(frozen=True)
class Size:
    """Of a model, and how it is trained: on 300B tokens."""

    width: int
    batch: int
    lr: float
    final: float  # learning rate in the end
    experts: int  # of a layer: of the standard mixture, …
    few: int  # … and of PR-MoE's, …
    many: int  # … of which the last ones have more


SIZES = {"350m": Size(1024, 256, 2e-4, 2e-6, 128, 32, 64), "1.3b": Size(2048, 512, 1.2e-4, 1e-6, 128, 64, 128)}
KINDS = {  # whether a dense layer stands beside the experts, and whether most of these are in the last layers
    "moe": (False, False),
    "residual": (True, False),
    "pyramid": (False, True),
    "pr": (True, True),
}
PUBLISHED = {  # billions of parameters, as the paper rounds them
    **{("350m", "moe", DEPTH): 13.0, ("350m", "pr", DEPTH): 4.0, ("350m", "pr", STUDENT): 3.5},
    **{("1.3b", "moe", DEPTH): 52.0, ("1.3b", "pr", DEPTH): 31.0, ("1.3b", "pr", STUDENT): 27.0},
}


def recipe(
    data: str = "stdlib",
    size: str = "350m",
    kind: str = "pr",
    teacher: str | None = None,
    tokenizer: str | None = None,
) -> Run:
    """Sizes (of the dense model that it costs as much as): 350m, 1.3b. Kinds: moe, residual, pyramid, pr.

    teacher: a trained model of the same tokens, from which one with an eighth less layers learns.
    """
    if size not in SIZES:
        raise UserError(f"DeepSpeed-MoE has no size {size}: take one of {', '.join(SIZES)}")
    s = SIZES[size]
    steps = round(300e9 / (2048 * s.batch))
    run = Run(
        data=TextData(
            sources=(Source(path=data),),
            context=2048,
            tokenizer=LoadTokenizer(path=tokenizer) if tokenizer else TrainBPE(vocab=50257),
        ),
        model=published(size, kind, STUDENT if teacher else DEPTH),
        optimizer=AdamWConfig(lr=s.lr, betas=(0.9, 0.95), weight_decay=0.1),
        trainer=TrainerConfig(
            steps=steps,
            batch=s.batch,
            schedule=Cosine(warmup=round(375e6 / (2048 * s.batch)), final=s.final / s.lr),
            evaluate_every=1000,
            checkpoint_every=1000,
        ),
        out="runs/deepspeed_moe",
    )
    return taught(run, teacher) if teacher else run


def tiny(data: str = "stdlib", kind: str = "pr", teacher: str | None = None, tokenizer: str | None = None) -> Run:
    """A million parameters in eight layers, four of them with experts; the student has seven and three."""
    run = recipe(data, kind=kind, tokenizer=tokenizer)
    vocab = run.model.vocab if tokenizer else 2048
    layers = sparse(7 if teacher else 8, MLPConfig(width=192, activation="gelu_tanh"), 4, 2, 4, kind)
    shape = {"width": 96, "context": 256, "embed.position.context": 256, "vocab": vocab, "block.mixer.heads": 4}
    run = run.but(
        {
            "data.context": 256,
            **({} if tokenizer else {"data.tokenizer.vocab": vocab}),
            "model": run.model.but({**shape, **layers}).to_dict(),
            "optimizer.lr": 2e-3,
            **TINY_TRAINER,
        }
    )
    return taught(run, teacher) if teacher else run


def taught(run: Run, teacher: str, share: float = TAUGHT) -> Run:
    """The same with a teacher for a share of its steps: cross-entropy and, of equal weight, its KL (section 4.2)."""
    until = round(share * run.trainer.steps)
    staged = Distillation(hard=1, soft=1, until=until if share < 1 else None)
    changes = {"objective": staged.to_dict(), "frozen": {"teacher": teacher}, "trainer.metric": "ce"}
    return run.but({**changes, "out": f"{run.out}_student"})


def published(size: str, kind: str = "pr", depth: int = DEPTH) -> DecoderConfig:
    """A GPT of the paper with experts in every other layer."""
    s = SIZES[size]
    layers = sparse(depth, MLPConfig(width=4 * s.width, activation="gelu_tanh"), s.experts, s.few, s.many, kind)
    context = {"context": 2048, "embed.position.context": 2048}
    return families.gpt2().but({"width": s.width, **context, "block.mixer.heads": 16, **layers})


def sparse(depth: int, mlp: MLPConfig, experts: int, few: int, many: int, kind: str) -> dict[str, Any]:
    """What a model's config says of its layers: every other one has experts. `experts` each; where they are a pyramid
    `few`, and `many` in the last sixth of them."""
    if kind not in KINDS:
        raise UserError(f"DeepSpeed-MoE has no kind {kind}: take one of {', '.join(KINDS)}")
    residual, pyramid = KINDS[kind]
    layer = ExpertsConfig(
        experts=experts,
        expert=mlp,
        router=SwitchConfig(jitter=0.0, balance=0.01),
        capacity=1.0,
        shared=mlp if residual else None,
        mixed=residual,
    )
    numbers = [experts] * (depth // 2)
    if pyramid:
        last = max(1, round(len(numbers) / 6))
        numbers = [few] * (len(numbers) - last) + [many] * last
    pattern = [{} if i % 2 == 0 else {"ffn": layer.but({"experts": numbers[i // 2]}).to_dict()} for i in range(depth)]
    return {"depth": depth, "block.ffn": mlp.to_dict(), "pattern": pattern}


# The miniature: 416 things to know, and few parameters to know them with. Nothing here says anything about language.

LANGUAGES, LETTERS = "#$%&*+=@", string.ascii_letters
TEXTS = {"read": 2500, "tested": 100}
CONTEXT, STEPS, EVERY, INNER = 64, 150, 25, 32
STUDENTS = {"student alone": 0.0, "student, staged": TAUGHT, "student, taught to the end": 1.0}
FOLDER = Path("runs/check/deepspeed_moe")


def check(report: Report) -> None:
    """The paper's sizes; PR-MoE against the standard mixture, and a student taught to the end, for a while, or not."""
    for (size, kind, depth), billions in PUBLISHED.items():
        ours = count_parameters(published(size, kind, depth)) / 1e9
        report.close(f"billions of parameters, {size}, {kind}, {depth} layers", ours, billions, 0.5)
    miniature.cache_is_exact(report, tiny().model)
    found = {kind: [_trained(kind, miniature_of(kind), seed) for seed in SEEDS] for kind in ("dense", *KINDS)}
    for kind, share in STUDENTS.items():
        found[kind] = []
        for seed, teacher in zip(SEEDS, found["pr"], strict=True):
            run = miniature_of("pr", STUDENT // 3)
            found[kind].append(_trained(kind, taught(run, str(teacher.out), share) if share else run, seed))
    for kind, results in found.items():
        report.note(f"parameters, {kind}", count_parameters(results[0].run.model))
        report.note(f"held-out cross-entropy, {kind}", [final(result) for result in results])
    worst = max(final(result) for kind, results in found.items() if kind != "dense" for result in results)
    report.less(
        "held-out cross-entropy of the worst mixture, against its first", worst, losses(found["dense"][0])[0][1]
    )
    alike = round(TAUGHT * STEPS)
    pairs = zip(found["student, staged"], found["student, taught to the end"], strict=True)
    differ = [a["step"] for staged, full in pairs for a, b in zip(staged.log, full.log) if a["loss"] != b["loss"]]
    report.equal("first step in which the staged student learns something else", min(differ), alike + 1)
    for name, a, b in (
        ("PR-MoE against the standard mixture", "pr", "moe"),
        ("PR-MoE against the dense model", "pr", "dense"),
        ("student taught in stages against its teacher", "student, staged", "pr"),
        ("student taught in stages against one alone", "student, staged", "student alone"),
        ("student taught in stages against one taught to the end", "student, staged", "student, taught to the end"),
    ):
        gaps = [final(x) - final(y) for x, y in zip(found[a], found[b], strict=True)]
        report.note(f"{name}, nats more", gaps)
        report.note(f"seeds of {len(SEEDS)} in which it is better: {name}", sum(gap < 0 for gap in gaps))
    report.published("PR-MoE's share of the standard mixture's parameters, 350M", 4 / 13, _share(found))
    axes = Axis("steps"), Axis("held-out cross-entropy, nats per token")
    for name, kinds in {"mixtures": ("dense", *KINDS), "students": ("pr", *STUDENTS)}.items():
        curves = [
            Curve(*np.array(_means(found[kind])[1:]).T, f"series-{i}", label=kind) for i, kind in enumerate(kinds, 1)
        ]
        title = f"Held-out cross-entropy, {name}"
        report.chart(title.lower(), draw(curves, *axes, title=title, margin=170))


def miniature_of(kind: str, depth: int = 8) -> Run:
    """Eight layers of 32 channels, four of them with experts unless `kind` is dense, on 1,024 tokens at a time."""
    mlp = MLPConfig(width=INNER, activation="gelu_tanh")
    layers = {"depth": depth} if kind == "dense" else sparse(depth, mlp, 16, 4, 8, kind)
    block = BlockConfig(mixer=AttentionConfig(heads=2, position=RotaryConfig()), ffn=mlp)
    model = DecoderConfig(vocab=257, width=32, depth=depth, context=CONTEXT, init="fan_in", block=block)
    return Run(
        data=TextData(sources=(Source(path=str(_texts())),), context=CONTEXT),
        model=model.but(layers),
        optimizer=AdamWConfig(lr=0.01, weight_decay=0.0),
        trainer=TrainerConfig(
            steps=STEPS,
            batch=16,
            schedule=Linear(warmup=0.05, final=0.1),
            evaluate_every=EVERY,
            checkpoint_every=STEPS,
        ),
    )


def _texts() -> Path:
    """A store of texts, made once: a sign names one of eight languages, and in each one of two letters follows a
    letter, as a coin falls. No text is read twice."""
    store, random = FOLDER / "texts", Random(0)
    if store.exists():
        return store
    follows = {sign + letter: random.choices(LETTERS, k=2) for sign in LANGUAGES for letter in LETTERS}
    for name, count in TEXTS.items():
        rows = []
        for _ in range(count):
            text = random.choice(LANGUAGES) + random.choice(LETTERS)
            while len(text) < CONTEXT - 1:  # and its end
                text += random.choice(follows[text[0] + text[-1]])
            rows.append(json.dumps({"text": text}) + "\n")
        atomic_write(FOLDER / f"{name}.jsonl", "".join(rows))
    letters = TrainBPE(vocab=256 + 1, special=("<|endoftext|>",))
    source = Source(path=str(FOLDER / "read.jsonl"))
    TextData(sources=(source,), validation=str(FOLDER / "tested.jsonl"), tokenizer=letters).build(store)
    return store


def _trained(kind: str, run: Run, seed: int) -> Result:
    place = FOLDER / kind.replace(",", "").replace(" ", "-") / str(seed)
    return whole(train(run.but({"seed": seed, "out": str(place)})))


def losses(result: Result) -> list[tuple[int, float]]:
    """(step, held-out cross-entropy): of a student, without what its teacher says."""
    told = [(record["step"], record["held_out"]) for record in result.log if "held_out" in record]
    return [(step, held_out.get("ce", held_out["loss"])) for step, held_out in told]


def final(result: Result) -> float:
    return losses(result)[-1][1]


def _means(results: list[Result]) -> list[tuple[int, float]]:
    return [(steps[0][0], fmean(loss for _, loss in steps)) for steps in zip(*map(losses, results), strict=True)]


def _share(found: dict[str, list[Result]]) -> float:
    ours, standard = (count_parameters(found[kind][0].run.model) for kind in ("pr", "moe"))
    return ours / standard
