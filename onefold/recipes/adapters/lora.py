"""LoRA (Hu et al. 2021, arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353).

Claim: what fine-tuning changes has few dimensions, so two thin matrices beside each frozen one learn it about as well
as training all of them does, with ten thousand times fewer trained parameters for GPT-3; merged, they cost nothing.

Deviations: adapters stand beside all matrices in blocks, as QLoRA found necessary (arXiv 2305.14314, figure 2), with
its learning rate and clipping; LoRA's own experiments adapt queries and values only.
"""

import json
from collections.abc import Iterator
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import torch

from onefold.adapt.lora import LoRAConfig
from onefold.adapt.quantize import QuantizeConfig
from onefold.core.device import pick
from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.core.progress import say
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.documents import Source
from onefold.infer.evaluation.evaluate import evaluate
from onefold.infer.model import Model, as_writer, load
from onefold.interop.adapted import base_weights, plain
from onefold.interop.open import open_model
from onefold.interop.table import own_weights
from onefold.models import families
from onefold.models.transformer import DecoderConfig
from onefold.recipes.encoders import _encoders as encoders
from onefold.recipes.encoders import _transfer as transfer
from onefold.recipes.language import gpt
from onefold.study import machine
from onefold.study.check import Report, whole
from onefold.study.pages.report import write_report
from onefold.study.results import write_results
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Constant
from onefold.training.run import Result, Run, train
from onefold.training.trainer import TrainerConfig

SAMPLES = 3  # held-out questions that a report shows answered before and after
ROWS = 16  # of one step, where there are enough to learn from
ANSWER = {"temperature": 0.0, "max_new_tokens": 120}
GPT3 = families.gpt2("xl").but({"width": 12288, "depth": 96, "block.mixer.heads": 96, "block.ffn.width": 49152})
FOLDER = "runs/check/lora"
METHODS: dict[str, dict[str, Any]] = {
    "full fine-tuning": {"adapt": [], "optimizer.lr": 5e-4},
    "LoRA": {},
    "rsLoRA": {"adapt.0.rslora": True},
    "DoRA": {"adapt.0.dora": True},
}


def recipe(start: str | None = None, chat: str | None = None) -> Run:
    """Supervised fine-tuning of `start` on the answers of `chat`, a file of conversations."""
    return Run(
        data=ChatData(path=chat) if chat else ChatData(pairs=(Source(path="stdlib"),)),
        start=start,
        adapt=(LoRAConfig(),),
        optimizer=AdamWConfig(lr=2e-4, betas=(0.9, 0.999), weight_decay=0.0),
        trainer=TrainerConfig(steps=1000, batch=ROWS, clip=0.3, schedule=Constant(warmup=0.03), evaluate_every=100),
        out=Path("runs/lora"),
    )


def tiny(start: str | None = None, chat: str | None = None) -> Run:
    """Rows of 128 tokens, for models of a million parameters."""
    trainer = {"steps": 100, "batch": 8, "evaluate_every": 25}
    return recipe(start, chat).but({"data.context": 128, "optimizer.lr": 2e-3, "trainer": trainer})


def align(
    model: str,
    chat: str | None = None,
    epochs: float = 3.0,
    out: str = "runs/align",
    quantize: str | None = None,
    **settings: Any,
) -> Path:
    """Teach `model` the answers in a file of conversations by adapters; returns the page that shows what changed.

    quantize: a scheme (nf4, fp4, int4, int8) in which the weights beside the adapters are stored meanwhile: QLoRA.
    settings: dotted paths of the Run that this makes. The best of its evaluations on conversations held out is what
    opens. Given the same `out` again, it goes on where it stopped.
    """
    if not chat:
        raise UserError("align needs conversations: chat=FILE, a JSONL with messages")
    if epochs <= 0:
        raise UserError(f"epochs={epochs:g} leaves nothing to learn: give a positive number")
    before = as_writer(load(model), model)
    if not isinstance(before, Model):
        raise UserError(f"{model} writes one text about another; align is for models that go on with a text")
    context = min(before.context or ChatData.model_fields["context"].default, 512)
    run = recipe(str(model), str(chat)).but({"out": out, "data.context": context})
    if quantize:
        weights = QuantizeConfig.from_dict({"scheme": quantize})
        run = run.but({"adapt": [step.to_dict() for step in (weights, *run.adapt)]})
    data = {path: value for path, value in settings.items() if path.startswith("data.")}
    run = run.but(data)
    dataset = run.data.prepare(run.out / "data", before.tokenizer, keep=True)
    del before
    rows = max(1, dataset.size("train") // run.data.context)
    batch = max(1, min(ROWS, rows // 8))
    steps = max(10, ceil(epochs * rows / batch))
    sized = {"steps": steps, "batch": batch, "evaluate_every": max(1, steps // 8)}
    result = train(run.but({"trainer": sized} | {k: v for k, v in settings.items() if k not in data}))
    if result.status == "interrupted":
        raise KeyboardInterrupt
    page = compare(result, chat)
    say(f"look at {page}\n  onefold chat {out}\n  onefold merge {out} {out}/merged")
    return page


def compare(result: Result, chat: str) -> Path:
    """The page of an adapted run: its loss, and answers to questions held out, before and after."""
    run, model = result.run, load(result.out, device=pick(result.run.trainer.device))
    dataset = run.data.prepare(result.out / "data", model.tokenizer, keep=True)
    questions = list(islice(_questions(run.data), SAMPLES))
    losses, answers = {}, {}
    for name in (None, *model.adapters):
        model.use(name)
        losses[name] = evaluate(model.network, dataset.evaluation("held_out", 4), dataset.bytes("held_out")).loss
        answers[name] = [model.chat(question, **ANSWER) for question in questions]
    samples = []
    for i, question in enumerate(questions):
        for title, name in (("before", None), ("after", model.adapters[-1])):
            said = [*question, {"role": "assistant", "content": answers[name][i]}]
            samples.append({"title": f"Question {i + 1}, {title}", "messages": said, "settings": ANSWER})
    was, became = losses[None], losses[model.adapters[-1]]
    trained = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
    write_results(
        result.out,
        title=f"{Path(str(run.start)).name}, aligned",
        final={"loss": became, "loss_before": was, "parameters": model.parameters_count, "trained": trained},
        samples=samples,
        data={"name": str(chat), **{k: v for k, v in dataset.facts.items() if k != "card"}},
        machine=machine.facts(),
        notes=[f"Loss on answers held out: {was:.3f} before, {became:.3f} after, in nats a token."],
        reproduce=[f"onefold train {result.out / 'config.json'}"],
    )
    say(f"loss on answers held out: {was:.3f} before, {became:.3f} after")
    return write_report(result.out)


def _questions(data: ChatData) -> Iterator[list[dict[str, Any]]]:
    """Of each conversation held out, all up to its first answer."""
    for split, _, messages in data.conversations(lambda error: None):
        first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        if split == "held_out":
            yield [{"role": m["role"], "content": m["content"]} for m in messages[:first]]


def check(report: Report) -> None:
    """Exact counts for GPT-3; adapters begin as nothing and merge exactly; a small model learns by each of them."""
    for rank, published in ((1, 4.7), (8, 37.7)):  # table 4
        count = trained(GPT3, LoRAConfig(rank=rank, targets=("mixer.q", "mixer.v")))
        report.equal(f"GPT-3 by rank {rank} beside queries and values", count, 96 * 2 * 2 * 12288 * rank)
        report.published(f"the same in millions, rank {rank}", published, round(count / 1e6, 1))
    chat, bases = dialogues(), [pretrained(seed) for seed in encoders.SEEDS]
    for name, changes in METHODS.items():
        before, after, merged, moved = [], [], 0.0, 0
        for seed, base in zip(encoders.SEEDS, bases):
            trainer = {"steps": 60, "evaluate_every": 60, "checkpoint_every": 60, "log_every": 10}
            out = f"{FOLDER}/{name.replace(' ', '-')}/{seed}"
            run = tiny(str(base.out), chat).but({**changes, "seed": seed, "out": out, "trainer": trainer})
            result = whole(train(run))
            after.append(transfer.held_out(result)["loss"])
            if not run.adapt:
                continue
            model, as_it_was = load(result.out), own_weights(open_model(base.out).model)
            dataset = run.data.prepare(result.out / "data", model.tokenizer, keep=True)
            tokens = next(iter(dataset.evaluation("held_out", 4))).tokens
            with torch.no_grad():
                beside = model.network(tokens) - plain(open_model(result.out)).model(tokens)
            merged = max(merged, beside.abs().max().item())
            now = {key: w[: len(as_it_was[key])] for key, w in base_weights(model.network).items()}  # tokens were added
            moved += sum(not torch.equal(w, now[key]) for key, w in as_it_was.items())
            model.use(None)
            before.append(evaluate(model.network, dataset.evaluation("held_out", 8), 1).loss)
        if before:
            report.equal(f"{name}: weights of the base that moved", moved, 0)
            report.close(f"{name}: merged against beside, logits", merged, 0.0, 1e-3)
            report.less(f"{name}: nats a token of answers held out, against before", after, before)
        else:
            report.note(f"{name}: nats a token of answers held out", after)


def trained(config: DecoderConfig, step: LoRAConfig) -> int:
    """How many parameters train."""
    with torch.device("meta"):
        model = config.build()
        step.apply(model)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def pretrained(seed: int) -> Result:
    """A GPT of a quarter of a million parameters, pre-trained briefly."""
    shape = {f"model.{key}": value for key, value in transfer.SHAPES["gpt"].items()}
    run = encoders.briefly(gpt.tiny().but(shape), 250, transfer.ROWS)
    changes = {"data.sources": [transfer.store()], "optimizer.lr": 3e-3, "seed": seed, "out": f"{FOLDER}/base/{seed}"}
    return whole(train(run.but({**changes, "trainer": {"evaluate_batches": 32, "log_every": 10}})))


def dialogues(count: int = 600) -> str:
    """A file of requests and the functions that answer them, from the standard library."""
    file = Path(FOLDER) / "dialogues.jsonl"
    if not file.is_file():
        pairs = ChatData(pairs=(Source(path="stdlib"),)).conversations()
        lines = [json.dumps({"messages": [*messages]}) for _, _, messages in islice(pairs, count)]
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, "\n".join(lines) + "\n")
    return str(file)
