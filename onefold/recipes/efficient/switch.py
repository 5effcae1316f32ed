"""The Switch Transformer (Fedus et al. 2021, arXiv 2101.03961): T5 with experts, of which each token sees one.

    onefold train switch data=notes/
    onefold train switch data=notes/ size=large experts=128

Claim: sending a token to one expert is enough, and at the same arithmetic a token a model learns faster the more
experts it has: 64 of them reach T5-Base's loss in a seventh of its steps (section 3.1, figure 4).

Deviations: those of the recipe `t5`; dropout is 0.1 throughout, also while tuning, where the paper's experts have 0.4.
The released files' T5-Base (ReLU, 3,072 units) is followed where table 9 of the paper has gated layers of 2,048. The
check's models are decoders, all with one learning rate, which was tried by hand for few and for many experts, and
nothing is dropped: of batches as small as theirs, capacity 1.25 drops a third of what 64 experts are given (see the
check of `megablocks`).
"""

from onefold.models import seq2seq_families as families
from onefold.models.transformer import count_parameters
from onefold.nn.feedforward import MLPConfig
from onefold.nn.sparse.experts import ExpertsConfig
from onefold.nn.sparse.routing import SwitchConfig
from onefold.recipes.efficient import _experts as world
from onefold.recipes.seq2seq import t5
from onefold.study.check import Report
from onefold.training.run import Run

DENSE = MLPConfig(width=world.INNER, activation="relu", bias=False)
COUNTS = (4, 16, 64)
SIZES = {8: 619_339_008, 128: 7_415_217_408}  # of Base, by experts: the released files'


def recipe(
    data: str = "stdlib", tasks: str = "", size: str = "base", experts: int = 128, tokenizer: str | None = None
) -> Run:
    """2²⁰ tokens in a batch and 550,000 of these (section 5.6). Sizes and `tasks`: as T5's."""
    trainer = {"steps": 550_000, "batch": 2048}
    model = families.switch(size, experts).to_dict()
    return t5.recipe(data, tasks, tokenizer=tokenizer).but({"model": model, "trainer": trainer, "out": "runs/switch"})


def tiny(data: str = "stdlib", tasks: str = "", tokenizer: str | None = None) -> Run:
    """T5's miniature with four experts, half as wide as its own layers, in every other layer."""
    run = t5.tiny(data, tasks, tokenizer=tokenizer)
    ffn = of(4, capacity=1.25).but({"expert.width": 2 * run.model.width}).to_dict()
    pattern = {f"model.{side}.pattern": [{}, {"ffn": ffn}] for side in ("encoder", "decoder")}
    return run.but(pattern | {"out": "runs/switch"})


def of(experts: int, capacity: float | None = None) -> ExpertsConfig:
    return ExpertsConfig(experts=experts, expert=DENSE, router=SwitchConfig(), capacity=capacity)


def check(report: Report) -> None:
    """Exact sizes; a token costs what it costs T5; mixtures learn; steps and time to the dense model's loss."""
    for experts, published in SIZES.items():
        report.equal(
            f"parameters, base, {experts} experts", count_parameters(families.switch("base", experts)), published
        )
    routers = 12 * 128 * 768  # twelve of the 24 layers have one
    sees = world.active(families.switch("base", 128))
    report.equal("parameters that a token sees beside the routers', base", sees - routers, t5.SIZES["base"])
    kinds = {n: f"{n} experts, switch" for n in COUNTS}
    found = world.trained({"dense": world.small(DENSE), **{kind: world.small(of(n)) for n, kind in kinds.items()}})
    worst = max(world.final(result) for kind in kinds.values() for result in found[kind])
    report.less("held-out loss of the worst mixture, against its first", worst, world.losses(found["dense"][0])[0][1])
    world.scaling(report, found, "synthetic facts")
    world.busy(report, found[kinds[COUNTS[-1]]])
    report.published("share of T5-Base's steps, 64 experts", "1/7.5")
