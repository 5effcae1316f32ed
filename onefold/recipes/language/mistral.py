"""Mistral 7B (Jiang et al. 2023, arXiv 2310.06825).

Claim: a sliding window of 4096 with grouped heads bounds the memory and cost of attention, while stacked windows still
carry information from far further back.

Deviations: neither data, optimizer nor schedule were published; those of Llama 2 7B stand in.
"""

from onefold.infer.model import load
from onefold.models import families
from onefold.models.transformer import DecoderConfig, count_parameters
from onefold.recipes import _miniature as miniature
from onefold.recipes.language import llama2
from onefold.study.check import Report
from onefold.training.run import Run


def recipe(data: str = "stdlib", tokenizer: str | None = None) -> Run:
    return llama2.recipe(data, tokenizer=tokenizer).but(
        {"model": families.mistral().to_dict(), "data.context": 8192, "trainer.batch": 512, "out": "runs/mistral"}
    )


def tiny(data: str = "stdlib") -> Run:
    """A million parameters, four layers with a window of 64 in a context of 256."""
    return llama2.tiny(data).but({"model.block.mixer.window": 64, "out": "runs/mistral"})


def check(report: Report) -> None:
    """Exact sizes; memory flat past the window; k layers of window W reach k·(W-1)+1 back; a small one learns."""
    report.equal("parameters, 7B", count_parameters(families.mistral()), 7_241_732_096)
    report.equal("parameters, 7B v0.3", count_parameters(families.mistral("7b-v0.3")), 7_248_023_552)
    config = tiny().model
    report.equal("cache bytes that 4096 tokens need beyond 64", growth(config, 64, 4096), 0)
    for depth, window in ((1, 8), (2, 8), (4, 8), (3, 20)):
        narrow = config.but({"depth": depth, "block.mixer.window": window})
        told = f"reach of {depth} layers with a window of {window}"
        report.equal(told, miniature.reach(narrow, 96), depth * (window - 1) + 1)
    miniature.cache_is_exact(report, config.but({"block.mixer.window": 16}))
    runs = miniature.learns(report, "mistral", tiny())
    model = load(runs[0].out)
    text = model.generate("import ", max_new_tokens=300, temperature=0.8, seed=0)
    report.note("characters written by 300 steps past a window of 64", len(text))


def growth(config: DecoderConfig, short: int, long: int) -> int:
    """How many more bytes a cache for `long` tokens takes than one for `short`."""
    model = config.build()
    return model.init_state(1, long).bytes() - model.init_state(1, short).bytes()
