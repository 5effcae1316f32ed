"""Mixtral 8x7B (Jiang et al. 2024, arXiv 2401.04088): Mistral whose feed-forward layers are experts.

    onefold train mixtral data=notes/
    onefold train mixtral start=runs/mistral data=notes/     # every expert begins as Mistral's own layer

Claim: of eight experts a layer each token sees two, so that a model of 47 billion parameters costs as much a token as
one of 13 billion, and is as good as a dense one of 70.

Deviations: neither data, optimizer nor schedule were published; those of Llama 2 7B stand in. The check asks what the
papers before it say of experts (arXiv 2101.03961, figure 4): whether a dense model's loss is reached in fewer steps the
more experts there are, by models whose learning rates are tuned alike.
"""

import torch

from onefold.core.config import Config
from onefold.data.text.documents import Source, TextData, TrainBPE
from onefold.models import families
from onefold.models.transformer import count_parameters
from onefold.nn.feedforward import GatedMLPConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.recipes import _miniature as miniature
from onefold.recipes.efficient import _experts as world
from onefold.recipes.language import llama2
from onefold.study.check import Report
from onefold.training.run import Run

INNER = 172  # units of the miniature and of models of real text
ACTIVE = {"8x7b": 12_879_925_248}  # computed, not published: "13B"
COUNTS = (4, 16)
RATES = {None: 0.003, 4: 0.01, 16: 0.003}  # on real text, by experts: the best of 0.003, 0.005, 0.01, 0.02 and 0.03


def recipe(data: str = "stdlib", tokenizer: str | None = None, start: str | None = None) -> Run:
    """start: a dense model of the same width, whose layers each expert begins as."""
    model = families.mixtral().to_dict()
    changes = {"model": model, "data.context": 8192, "trainer.batch": 512, "out": "runs/mixtral", "start": start}
    return llama2.recipe(data, tokenizer=tokenizer).but(changes)


def tiny(data: str = "stdlib", start: str | None = None) -> Run:
    """A million parameters: four experts a layer, two of which are as wide as the dense layer of a smaller model."""
    return llama2.tiny(data).but({"model.block.ffn": of(4, INNER), "out": "runs/mixtral", "start": start})


def of(experts: int | None, inner: int) -> Config:
    """Experts, two of which have `inner` units; None: a dense layer of as many."""
    if experts is None:
        return GatedMLPConfig(width=inner)
    return ExpertsConfig(experts=experts, expert=GatedMLPConfig(width=inner // 2))


def check(report: Report) -> None:
    """Exact sizes; experts are a loop over tokens; they learn; steps and time to the dense model's loss."""
    for size, published in {"8x7b": 46_702_792_704, "8x22b": 140_620_634_112}.items():
        report.equal(f"parameters, {size}", count_parameters(families.mixtral(size)), published)
    report.equal("parameters that a token sees, 8x7b", world.active(families.mixtral()), ACTIVE["8x7b"])
    report.close("a layer against a loop over tokens, largest difference", against_a_loop(), 0.0, 1e-5)
    miniature.cache_is_exact(report, tiny().model)
    names = {None: "dense, gated"} | {n: f"{n} experts, top 2" for n in COUNTS}
    facts = world.trained({name: world.small(of(n, world.INNER)) for n, name in names.items()})
    text = {name: world.trained({f"text, {name}": on_text(n)})[f"text, {name}"] for n, name in names.items()}
    for on, found in {"synthetic facts": facts, "real text": text}.items():
        mixtures = [result for n in COUNTS for result in found[names[n]]]
        first = world.losses(found[names[None]][0])[0][1]
        report.less(
            f"{on}: held-out loss of the worst mixture, against its first", max(map(world.final, mixtures)), first
        )
        world.scaling(report, found, on)
    world.busy(report, text[names[COUNTS[-1]]])


def on_text(experts: int | None) -> Run:
    """Two layers of 64 channels on the standard library's text, for a quarter of a million tokens."""
    store = world.FOLDER / "text"
    if not store.exists():
        TextData(tokenizer=TrainBPE(vocab=512)).build(store)
    run = tiny().but({"model": {"width": 64, "depth": 2, "context": 64, "vocab": 512}})
    data = TextData(sources=(Source(path=str(store)),), context=64).to_dict()
    trainer = {"steps": 240, "batch": 16, "evaluate_every": 20, "evaluate_batches": 16, "checkpoint_every": 240}
    changes = {"data": data, "model.block.ffn": of(experts, INNER).to_dict(), "trainer": trainer}
    return run.but(changes | {"optimizer.lr": RATES[experts]})


@torch.no_grad()
def against_a_loop() -> float:
    torch.manual_seed(0)
    layer = of(6, 32).build(24)
    x = torch.randn(40, 24)
    expected = []
    for row in x:
        p, chosen = (layer.router.weight @ row).softmax(0).topk(2)
        parts = []
        for weight, e in zip(p / p.sum(), chosen.tolist(), strict=True):
            gate, up = (layer.experts.gate_up.weight[e] @ row).chunk(2)
            parts.append(weight * (layer.experts.out.weight[e] @ (torch.nn.functional.silu(gate) * up)))
        expected.append(sum(parts))
    return (layer(x[None])[0] - torch.stack(expected)).abs().max().item()
