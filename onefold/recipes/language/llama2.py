"""Llama 2 (Touvron et al. 2023, arXiv 2307.09288): the pre-trained model, and what it is tuned to chat with.

    onefold train llama2 data=notes/
    onefold train llama2 chat=dialogues.jsonl start=runs/llama2

Claim: RMSNorm, SwiGLU, rotary positions and, at 70B, grouped key-value heads, trained on two trillion tokens, make open
models that serve as a base for chat.

Deviations: its text was never published, so `data` is yours; the batch of 4M tokens is the paper's, steps follow from
2T tokens. Fine-tuning (section 3.1) takes two epochs of 27,540 conversations in the paper: set `trainer.steps` for
yours. What comes next are the recipes `reward`, `rlhf` and `ghost_attention`.
"""

import torch

from onefold.core.errors import UserError
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.documents import LoadTokenizer, Source, TextData, TrainBPE
from onefold.models import families
from onefold.models.transformer import count_parameters
from onefold.recipes import _miniature as miniature
from onefold.recipes.language.gpt2 import TINY_SHAPE, TINY_TRAINER
from onefold.study.check import Report
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Cosine
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig


def recipe(
    data: str = "stdlib",
    size: str = "7b",
    tokenizer: str | None = None,
    chat: str | None = None,
    start: str | None = None,
) -> Run:
    """Sizes: 7b, 13b, 70b. chat: a file of conversations, by which `start` is fine-tuned instead."""
    if (chat is None) != (start is None):
        raise UserError("conversations tune a model that is there: give both chat=FILE and start=MODEL, or neither")
    if chat:
        return Run(
            data=ChatData(path=chat, context=4096, template="llama-2"),
            start=start,
            optimizer=AdamWConfig(lr=2e-5, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1),
            trainer=TrainerConfig(steps=860, batch=64, schedule=Cosine(), clip=1.0, evaluate_every=100),
            out="runs/llama2-chat",
        )
    return Run(
        data=TextData(
            sources=(Source(path=data),),
            context=4096,
            tokenizer=LoadTokenizer(path=tokenizer) if tokenizer else TrainBPE(vocab=32000),
        ),
        model=families.llama2(size),
        optimizer=AdamWConfig(lr=1.5e-4 if size == "70b" else 3e-4, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1),
        trainer=TrainerConfig(steps=500_000, batch=1024, schedule=Cosine(warmup=2000), clip=1.0, checkpoint_every=1000),
        out="runs/llama2",
    )


def tiny(data: str = "stdlib", chat: str | None = None, start: str | None = None) -> Run:
    """A million parameters with two key-value heads for four heads."""
    if chat or start:
        tuned = {"data.context": 256, "optimizer.lr": 5e-4, "trainer": {"steps": 100, "batch": 16}}
        return recipe(chat=chat, start=start).but(tuned)
    return recipe(data).but(
        {
            "data": {"context": 256, "tokenizer": {"vocab": 2048}},
            "model": TINY_SHAPE | {"vocab": 2048, "tied": True},
            "model.block": {"mixer": {"heads": 4, "kv_heads": 2}, "ffn": {"width": 344}},
            "optimizer.lr": 3e-3,
            **TINY_TRAINER,
        }
    )


SIZES = {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192}


def check(report: Report) -> None:
    """Exact sizes; grouped heads are shared heads; rotary positions are relative; a small one learns."""
    for size, published in SIZES.items():
        report.equal(f"parameters, {size}", count_parameters(families.llama2(size)), published)
    miniature.cache_is_exact(report, tiny().model)
    grouped_heads_are_shared(report)
    only_distances_count(report)
    runs = miniature.learns(report, "llama2", tiny())
    miniature.uses_its_context(report, runs)


@torch.no_grad()
def grouped_heads_are_shared(report: Report) -> None:
    """A model of two key-value heads equals one of four in which each of the two stands twice."""
    grouped = tiny().model.but({"depth": 1})
    full = grouped.but({"block.mixer.kv_heads": None})
    torch.manual_seed(0)
    a, b = grouped.build(), full.build()
    weights = a.state_dict()
    q, k, v = weights["blocks.0.mixer.qkv.weight"].split((128, 64, 64))
    twice = [part.view(2, 32, 128).repeat_interleave(2, dim=0).reshape(128, 128) for part in (k, v)]
    b.load_state_dict(weights | {"blocks.0.mixer.qkv.weight": torch.cat((q, *twice))})
    tokens = torch.randint(0, grouped.vocab, (1, 32), generator=torch.Generator().manual_seed(1))
    report.close(
        "grouped against repeated heads, largest difference", (a(tokens) - b(tokens)).abs().max().item(), 0, 1e-5
    )


@torch.no_grad()
def only_distances_count(report: Report) -> None:
    """Moving a whole text to later positions changes nothing."""
    torch.manual_seed(0)
    model = tiny().model.build()
    tokens = torch.randint(0, 2048, (1, 32), generator=torch.Generator().manual_seed(1))
    here = torch.arange(32)[None]
    moved = (model(tokens, here) - model(tokens, here + 1000)).abs().max().item()
    report.close("a text moved by 1000 positions, largest difference", moved, 0, 1e-3)
