"""What the checks of several landmarks share: a small run over three seeds, and questions to put to it."""

from statistics import mean

import torch

from onefold.infer.evaluation.evaluate import bits_per_byte
from onefold.infer.generation.engine import evaluating
from onefold.infer.model import load
from onefold.models.transformer import DecoderConfig
from onefold.study.check import Report, whole
from onefold.study.ngram import ByteNgram
from onefold.training.run import Result, Run, train

SEEDS = (0, 1, 2)


def cache_is_exact(report: Report, config: DecoderConfig, length: int = 48) -> None:
    """Logits of a sequence read token by token through the cache equal those of the sequence read whole."""
    model = _rough(config)
    tokens = torch.randint(0, config.vocab, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(tokens)
        state = model.init_state(2, length)
        steps = torch.cat([model(tokens[:, t : t + 1], state=state) for t in range(length)], dim=1)
    report.close("cached logits, largest difference", (whole - steps).abs().max().item(), 0.0, 1e-4)


def learns(report: Report, name: str, run: Run, steps: int = 150) -> list[Result]:
    """Train `run` briefly with three seeds: each must beat counts of byte pairs on the files held out."""
    results, scores = [], []
    for seed in SEEDS:
        changes = {"seed": seed, "out": f"runs/check/{name}/{seed}", "trainer.steps": steps}
        results.append(whole(train(run.but(changes))))
        data = run.data.prepare(results[-1].out / "data")
        scores.append(bits_per_byte(load(results[-1].out).network, data, "held_out"))
    train_text, held_out = ([d.text.encode() for d in data.text(split)] for split in ("train", "held_out"))
    bigram = ByteNgram.fit(train_text, 2).bits_per_byte(held_out)
    report.less("held-out bits per byte, worst seed, against pairs of bytes", max(scores), bigram)
    report.note(f"held-out bits per byte after {steps} steps", scores)
    return results


def uses_its_context(report: Report, results: list[Result]) -> None:
    """Loss late in the context against loss early in it, on files held out: what reading on is worth."""
    early, late = [], []
    for result in results:
        model = load(result.out)
        run = result.run
        data = run.data.prepare(result.out / "data")
        losses = _loss_by_position(model.network, data, run.data.context)
        early.append(losses[: run.data.context // 8].mean().item())
        late.append(losses[run.data.context // 2 :].mean().item())
    report.less("nats per token late in the context, against its first eighth", mean(late), mean(early))


@torch.no_grad()
def _loss_by_position(network: torch.nn.Module, data, context: int, rows: int = 8) -> torch.Tensor:
    """Mean nats per token at each position of rows that hold one piece of one document."""
    total, count = torch.zeros(context), torch.zeros(context)
    with evaluating(network):
        for batch in data.evaluation("held_out", rows):
            logits = network(batch.tokens, batch.positions, batch.segments)
            nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
            where = torch.arange(context).expand_as(batch.tokens) if batch.positions is None else batch.positions
            total.index_add_(0, where.flatten(), nats * batch.weights.flatten())
            count.index_add_(0, where.flatten(), batch.weights.flatten())
    return total / count.clamp(min=1)


def _rough(config: DecoderConfig) -> torch.nn.Module:
    """A model whose weights are large enough that a wrong mask or position shows."""
    torch.manual_seed(0)
    model = config.build().eval()
    for name, parameter in model.named_parameters():
        grows = parameter.ndim == 1 and ".route." not in name  # what a router says multiplies what a block adds
        torch.nn.init.normal_(parameter, mean=float(grows), std=0.1)
    return model


def reach(config: DecoderConfig, length: int) -> int:
    """How many positions back, itself included, the features of the last position depend on, by its gradient."""
    model = _rough(config)
    embedded: list[torch.Tensor] = []

    def keep(_, __, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.embed.register_forward_hook(keep)
    model.features(torch.zeros(1, length, dtype=torch.long))[0, -1].square().sum().backward()
    seen = embedded[0].grad[0].abs().sum(-1) > 0
    return length - int(seen.int().argmax())
