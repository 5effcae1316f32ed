"""A model that names what is in a picture: from whatever a picture comes as to probabilities of classes."""

import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from onefold.core.batch import ImageBatch
from onefold.core.errors import UserError
from onefold.data.pictures.reader import PictureReader
from onefold.infer.generation.engine import device_of, evaluating
from onefold.infer.look import Picture, look
from onefold.infer.opened import Opened
from onefold.interop.loaded import Loaded

ROWS = 64  # pictures at once


@dataclass(frozen=True)
class Predictions:
    """What a model said of pictures whose classes are known."""

    probabilities: Float[Tensor, "N classes"]
    truth: Int[Tensor, " N"]
    rows: Int[Tensor, " N"]  # which record each picture is

    def __len__(self) -> int:
        return len(self.truth)

    @cached_property
    def guesses(self) -> Int[Tensor, " N"]:
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        return float((self.guesses == self.truth).double().mean())

    def top(self, k: int) -> float:
        """Share of pictures whose class is among the k likeliest."""
        best = self.probabilities.topk(min(k, self.probabilities.shape[1])).indices
        return float((best == self.truth[:, None]).any(1).double().mean())

    @cached_property
    def losses(self) -> Float[Tensor, " N"]:
        """-log of the probability that the true class got, in nats."""
        return -self.probabilities.gather(1, self.truth[:, None])[:, 0].clamp(min=1e-30).log()


def predict(network: nn.Module, batches: Iterable[ImageBatch]) -> Predictions:
    """What `network` says of all pictures in `batches`. Errors: UserError when there are none, or without classes."""
    probabilities, truth, rows, seen = [], [], [], 0
    with evaluating(network):
        for batch in batches:
            if batch.targets is None:
                raise UserError("these pictures have no classes to compare with")
            logits = network(batch.to(device_of(network)).pixels())
            probabilities.append(logits.float().softmax(1).cpu())
            truth.append(batch.targets.argmax(1).cpu())
            rows.append(torch.arange(seen, seen + batch.rows) if batch.rows_of is None else batch.rows_of.cpu())
            seen += batch.rows
    if not seen:
        raise UserError("there are no pictures to evaluate on")
    return Predictions(torch.cat(probabilities), torch.cat(truth), torch.cat(rows).long())


class Classifier(Opened):
    """A loaded model of pictures, ready to be asked."""

    def __init__(self, loaded: Loaded):
        """Raises UserError when the model has no classifier, or it is not known how it looks at pictures."""
        if not isinstance(loaded.processor, PictureReader):
            raise UserError("this model came without pictures.json, so it is not known how it looks at pictures")
        if not getattr(loaded.config, "classes", 0):
            raise UserError("this model has features but no classifier; train one on it: start=… model.classes=…")
        super().__init__(loaded)
        self.reader: PictureReader = loaded.processor

    @property
    def classes(self) -> tuple[str, ...]:
        """What each output means; "0", "1", … where the model came without names."""
        return self.reader.classes or tuple(map(str, range(self.config.classes)))

    def look(self, pictures: Sequence[Picture]) -> UInt8[Tensor, "B C side side"]:
        """What the model is shown of each picture."""
        return torch.stack([look(picture, self.reader) for picture in pictures])

    @torch.no_grad()
    def classify(self, pictures: Sequence[Picture] | UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Probabilities of the classes, on the CPU.

        pictures: files, bytes of files, UInt8[H, W] or [H, W, C] arrays, Pillow's images; or a tensor that is looked
        at as it is. Raises UserError for what is no picture.
        """
        if isinstance(pictures, str | bytes | Path) or (isinstance(pictures, np.ndarray) and pictures.ndim < 4):
            raise UserError("classify takes a list of pictures; for a single one, [picture]")
        found = [torch.empty(0, len(self.classes))]
        for start in range(0, len(pictures), ROWS):
            part = pictures[start : start + ROWS]
            images = part if isinstance(part, Tensor) else self.look(part)
            batch = ImageBatch(images=images, mean=self.reader.mean, std=self.reader.std)
            found.append(self.network(batch.to(device_of(self.network)).pixels()).float().softmax(1).cpu())
        return torch.cat(found)

    def best(
        self, pictures: Sequence[Picture] | UInt8[Tensor, "B C H W"], top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """For each picture its likeliest classes with their probabilities, the likeliest first."""
        top = min(top, len(self.classes))
        values, places = self.classify(pictures).topk(top)
        return [
            [(self.classes[i], float(p)) for i, p in zip(row, ps)] for row, ps in zip(places.tolist(), values.tolist())
        ]


def evaluate_pictures(classifier: Classifier, data: str, **settings: Any) -> Predictions:
    """Name all pictures of a source, print the shares that are right, and return what was said.

    settings: those of `ImageData`, for its columns and the like.
    """
    from onefold.data.pictures.images import ImageData

    reader = classifier.reader.but({"classes": list(classifier.classes)})  # with names, so that some of them will do
    with tempfile.TemporaryDirectory() as folder:
        dataset = ImageData.from_dict({"path": data, "held_out": 0.0, **settings}).prepare(Path(folder), reader)
        if dataset.classes != classifier.classes:
            strange = sorted(set(dataset.classes) - set(classifier.classes))
            raise UserError(f"{data} has classes that the model does not know: {', '.join(strange[:3])}")
        splits = [split for split in ("train", "held_out") if dataset.size(split)]
        batches = chain.from_iterable(dataset.evaluation(split, ROWS) for split in splits)
        said = predict(classifier.network, batches)
    margin = 1.96 * math.sqrt(said.accuracy * (1 - said.accuracy) / len(said))
    told = f"{said.accuracy:.1%} ± {margin:.1%} of {len(said):,} pictures named rightly"
    print(told + (f", {said.top(5):.1%} among the first five" if len(classifier.classes) > 5 else ""))
    return said
