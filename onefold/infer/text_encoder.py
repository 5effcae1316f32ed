"""A model that reads text both ways: vectors of texts, words for hidden ones, classes of texts."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from onefold.core.errors import UserError
from onefold.infer.engine import device_of
from onefold.infer.opened import OpenedText
from onefold.models.embedder import Pooling, pool

ROWS = 32  # texts at once


class TextEncoder(OpenedText):
    """A loaded encoder. Texts that are longer than it can read lose their ends."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What each output of a classifier means; "0", "1", … where the model came without names."""
        return tuple(self.card.get("classes") or map(str, range(self.config.classes)))

    @torch.no_grad()
    def embed(self, texts: Sequence[str], pooling: Pooling = "mean", normalize: bool = True) -> Float[Tensor, "N D"]:
        """A vector for each text, on the CPU: the mean of its tokens' features.

        pooling: or that of the first token, or the last one. normalize: to length 1, so that products of two are their
        cosines.
        """
        found = torch.empty(len(texts), self.config.width)
        for rows, features, lengths in self._read(texts):
            found[rows] = pool(features, lengths, pooling).float().cpu()
        return F.normalize(found, dim=1) if normalize else found

    @torch.no_grad()
    def fill_mask(self, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
        """For each mask token in `text` the likeliest tokens with their probabilities, the likeliest first.

        Raises UserError where there is no mask, or the model has no head that knows tokens.
        """
        if self.config.masked is None:
            raise UserError("this model has no head that names hidden tokens; it was trained for something else")
        hidden = self.tokenizer.mask
        (ids, _) = self.tokenizer.encode_framed([text], length=self.config.context, special=True)[0]
        places = [i for i, token in enumerate(ids) if token == hidden]
        if not places:
            sign = None if hidden is None else self.tokenizer.decode([hidden], special=True)
            raise UserError(f"put {sign} where a word is missing" if sign else "this tokenizer has no mask token")
        tokens = torch.tensor([ids], device=device_of(self.network))
        logits = self.network.head(self.network.features(tokens)[0, places]).float()
        shares, best = logits.softmax(-1).topk(min(top, logits.shape[-1]))
        return [
            [(self.tokenizer.decode([i], special=True).strip() or " ", share) for i, share in zip(row, part)]
            for row, part in zip(best.tolist(), shares.tolist())
        ]

    @torch.no_grad()
    def classify(self, texts: Sequence[str], others: Sequence[str] | None = None) -> Float[Tensor, "N classes"]:
        """Probabilities of the classes of each text, or of each pair of texts, on the CPU."""
        if not self.config.classes or self.config.task != "sequence":
            what = {"token": "single tokens", "span": "where an answer stands"}.get(self.config.task)
            raise UserError(
                f"this model classifies {what}, not texts: use model.network.classify"
                if self.config.classes
                else "this model has no classifier; train one on it: start=… model.classes=…"
            )
        found = torch.empty(len(texts), self.config.classes)
        for rows, features, _ in self._read(texts, others):
            found[rows] = self.network.classify(features).float().softmax(-1).cpu()
        return found

    def best(self, texts: Sequence[str], top: int = 5) -> list[list[tuple[str, float]]]:
        """For each text its likeliest classes with their probabilities, the likeliest first."""
        values, places = self.classify(texts).topk(min(top, len(self.classes)))
        return [
            [(self.classes[i], share) for i, share in zip(row, shares)]
            for row, shares in zip(places.tolist(), values.tolist())
        ]

    def _read(
        self, texts: Sequence[str], others: Sequence[str] | None = None
    ) -> Iterator[tuple[list[int], Float[Tensor, "B T D"], Tensor]]:
        """(which texts, features of their tokens, lengths), the shortest texts first, so that little is padded."""
        if isinstance(texts, str):
            raise UserError("give a list of texts; for a single one, [text]")
        framed = self.tokenizer.encode_framed(texts, others, length=self.config.context)
        order = sorted(range(len(texts)), key=lambda i: len(framed[i][0]))
        device = device_of(self.network)
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            lengths = torch.tensor([len(framed[i][0]) for i in rows], device=device)
            shape = (len(rows), int(lengths.max()))
            tokens = torch.full(shape, self.tokenizer.pad or 0, device=device)
            types = torch.zeros(shape, dtype=torch.long, device=device) if self.config.embed.types > 1 else None
            for row, i in enumerate(rows):
                ids, kinds = framed[i]
                tokens[row, : len(ids)] = torch.tensor(ids)
                if types is not None:
                    types[row, : len(ids)] = torch.tensor(kinds)
            padding = (torch.arange(shape[1], device=device) >= lengths[:, None]).long()
            segments = padding if len(set(lengths.tolist())) > 1 else None
            yield rows, self.network.features(tokens, None, segments, types), lengths
