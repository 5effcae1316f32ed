"""How good a model's features of pictures are, with the model left as it is: neighbours, and a linear probe.

Neighbours vote by cosine similarity (arXiv 1805.01978, section 3.4; the settings of arXiv 2104.14294). The probe is
multinomial logistic regression, solved to its one minimum: what can be read off the features by a plane a class.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.batch import ImageBatch
from onefold.core.errors import UserError
from onefold.infer.generation.engine import device_of, evaluating

CHUNK = 1024  # pictures whose similarities to all others are held at once
DECAYS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # tried by the probe
MOST = 20_000  # pictures of a split that features are judged by
LEFT_OUT = 5  # one training picture in so many judges them


class PictureSource(Protocol):
    """What is asked of a data set: every picture of a split once, as it is, in a fixed order."""

    def evaluation(self, split: Any, rows: int) -> Iterable[ImageBatch]: ...


@dataclass(frozen=True)
class Features:
    """One vector for each picture, and its class."""

    vectors: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"]


def features_of(network: nn.Module, batches: Iterable[ImageBatch]) -> Features:
    """The pooled features of all pictures in `batches`, on the CPU. Errors: UserError when there are none."""
    vectors, labels = [], []
    with evaluating(network):
        for batch in batches:
            if batch.targets is None:
                raise UserError("these pictures have no classes, so features of them cannot be judged")
            labels.append(batch.targets.argmax(1).cpu())
            pixels = batch.to(device_of(network)).pixels()
            vectors.append(network.pool(network.features(pixels)).float().cpu())
    if not vectors:
        raise UserError("there are no pictures to take features of")
    return Features(torch.cat(vectors), torch.cat(labels))


def nearest_neighbours(bank: Features, asked: Float[Tensor, "M D"], k: int = 20, temperature: float = 0.07) -> Tensor:
    """The class that each of `asked` gets from its k nearest of `bank`, each voting exp(cosine / temperature).

    Returns Long[M].
    """
    k, classes = min(k, len(bank.labels)), int(bank.labels.max()) + 1
    known, wanted = F.normalize(bank.vectors, dim=1), F.normalize(asked, dim=1)
    found = []
    for part in wanted.split(CHUNK):
        similarity, places = (part @ known.T).topk(k, dim=1)
        # Relative to the nearest: the same order of votes, and no overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(part), classes).scatter_add_(1, bank.labels[places], weights)
        found.append(votes.argmax(1))
    return torch.cat(found)


@dataclass(frozen=True)
class Probe:
    """A plane for each class: logits = features · weight + bias."""

    weight: Float[Tensor, "D C"]
    bias: Float[Tensor, " C"]
    decay: float

    def __call__(self, vectors: Float[Tensor, "M D"]) -> Float[Tensor, "M C"]:
        return vectors @ self.weight + self.bias


def fit_probe(
    features: Features, classes: int, decay: float, start: Probe | None = None, iterations: int = 500
) -> Probe:
    """The minimum of mean cross-entropy + decay / 2 · ‖weight‖², over features scaled to mean 0 and variance 1.

    L-BFGS on all features at once; it stops where the gradient vanishes. The scaling is part of the probe returned.
    start: a probe of the same features with another decay, from which it is not far.
    """
    mean, std = features.vectors.mean(0), features.vectors.std(0, correction=0).clamp(min=1e-6)
    x = (features.vectors - mean) / std
    parameters = x.new_zeros(x.shape[1] + 1, classes)
    if start is not None:
        parameters = torch.cat((start.weight * std[:, None], (start.bias + mean @ start.weight)[None]))
    parameters.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=iterations,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight, bias = parameters[:-1], parameters[-1]
        loss = F.cross_entropy(x @ weight + bias, features.labels) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    weight = parameters.detach()[:-1] / std[:, None]
    return Probe(weight, parameters.detach()[-1] - mean @ weight, decay)


def linear_probe(features: Features, classes: int, decays: Sequence[float] = DECAYS, seed: int = 0) -> Probe:
    """A probe with the decay that serves a random fifth of the training pictures best when fitted to the others."""
    shuffled = torch.randperm(len(features.labels), generator=torch.Generator().manual_seed(seed))
    judges, inside = shuffled.tensor_split([len(shuffled) // LEFT_OUT])
    best, probe = (float("inf"), decays[0]), None
    if len(decays) > 1 and len(judges):
        for decay in sorted(decays, reverse=True):  # from the simplest on: of equals, it stays
            probe = fit_probe(_some(features, inside), classes, decay, probe)
            loss = float(F.cross_entropy(probe(features.vectors[judges]), features.labels[judges]))
            best = min(best, (loss, decay), key=lambda tried: tried[0])
    return fit_probe(features, classes, best[1])


def judge_features(
    network: nn.Module, dataset: PictureSource, rows: int = 64, k: int = 20, most: int = MOST
) -> dict[str, float]:
    """Shares of the held-out pictures named rightly: {"neighbours", "probe"}, and the probe's "decay".

    most: pictures of each split that are looked at; any beginning of an evaluation is a fair sample.
    """
    batches = (islice(dataset.evaluation(split, rows), -(-most // rows)) for split in ("train", "held_out"))
    bank, asked = (features_of(network, some) for some in batches)
    classes = 1 + int(max(bank.labels.max(), asked.labels.max()))
    probe = linear_probe(bank, classes)
    return {
        "neighbours": _share(nearest_neighbours(bank, asked.vectors, k), asked.labels),
        "probe": _share(probe(asked.vectors).argmax(1), asked.labels),
        "decay": probe.decay,
    }


def _some(features: Features, rows: Tensor) -> Features:
    return Features(features.vectors[rows], features.labels[rows])


def _share(guesses: Tensor, labels: Tensor) -> float:
    return float((guesses == labels).double().mean())
