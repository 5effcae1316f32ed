"""A model that reads text both ways: vectors of texts, words for hidden ones, classes of texts."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from onefold.core.errors import UserError
from onefold.data.text.chat.answers import Said
from onefold.infer.answers import Answer, answer_questions
from onefold.infer.generation.engine import device_of
from onefold.infer.generation.padding import padded
from onefold.infer.opened import OpenedText
from onefold.infer.reward import finite, framed_answers
from onefold.infer.tags import Tag, tag_texts
from onefold.models.embedder import Pooling, pool
from onefold.models.encoder import EncoderConfig
from onefold.models.recurrent.bilm import BiLMConfig

ROWS = 32  # texts at once


class TextEncoder(OpenedText):
    """A loaded encoder, or whatever else classifies texts. Texts that are longer than it can read lose their ends."""

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
        found = torch.empty(len(texts), self.config.width * (2 if isinstance(self.config, BiLMConfig) else 1))
        for rows, features, lengths in self._read(texts):
            found[rows] = pool(features, lengths, pooling).float().cpu()
        return F.normalize(found, dim=1) if normalize else found

    @torch.no_grad()
    def fill_mask(self, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
        """For each mask token in `text` the likeliest tokens with their probabilities, the likeliest first.

        Raises UserError where there is no mask, or the model has no head that knows tokens.
        """
        if getattr(self.config, "masked", None) is None:
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
        if not self.config.classes or self.task != "sequence":
            what = {"token": "tags words: use tag", "span": "finds answers: use answer"}.get(self.task)
            raise UserError(
                f"this model does not classify texts, it {what}"
                if self.config.classes
                else "this model has no classifier; train one on it: start=… model.classes=…"
            )
        if self.numbers:
            raise UserError("this model gives each text a number, not a class: use predict")
        return self._said(self._framed(texts, others)).softmax(-1)

    def best(self, texts: Sequence[str], top: int = 5) -> list[list[tuple[str, float]]]:
        """For each text its likeliest classes with their probabilities, the likeliest first."""
        values, places = self.classify(texts).topk(min(top, len(self.classes)))
        return [
            [(self.classes[i], share) for i, share in zip(row, shares)]
            for row, shares in zip(places.tolist(), values.tolist())
        ]

    @property
    def task(self) -> str:
        """What its classifier looks at: "sequence", "token" or "span"."""
        return getattr(self.config, "task", "sequence")

    @property
    def numbers(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the numbers that a regression learned; None: it gives none."""
        one = getattr(self.config, "classes", 0) == 1 and self.task == "sequence"
        return tuple(self.card.get("numbers", (0.0, 1.0))) if one else None

    def predict(self, texts: Sequence[str], others: Sequence[str] | None = None) -> Float[Tensor, " N"]:
        """The number that a regression gives to each text, or pair of texts, in the units that it was trained in."""
        if self.numbers is None:
            raise UserError("this model gives no numbers; train one on them: task=regression data=… start=…")
        mean, deviation = self.numbers
        return self._said(self._framed(texts, others))[:, 0] * deviation + mean

    def score(self, prompts: Sequence[Said], answers: Sequence[Said]) -> Float[Tensor, " N"]:
        """What a reward model makes of each answer to its prompt, text or messages: the higher, the better liked.

        Only differences between answers to one prompt mean something. Raises UserError for another model, and where a
        score is not finite.
        """
        framed = framed_answers(self.card, self.tokenizer, self.config.context, prompts, answers)
        return finite(self._said(framed)[:, 0])

    def tag(self, texts: Sequence[str | Sequence[str]]) -> list[list[Tag]]:
        """The tag of each word of each text, or of each list of words; long texts are read in windows.

        `onefold.infer.tags.entities` joins the words of names and the like.
        """
        return tag_texts(self, texts)

    def answer(self, question: str, context: str, none: bool = True) -> Answer:
        """Where in `context`, however long, the answer stands. none: False finds one where there seems to be none."""
        return answer_questions(self, [question], [context], none)[0]

    @torch.no_grad()
    def outputs(
        self, framed: Sequence[tuple[list[int], list[int]]], read: Callable[[Tensor], Tensor]
    ) -> list[Float[Tensor, "T C"]]:
        """What `read` makes of the features [B, T, D] of framed texts (ids, types), without padding, on the CPU."""
        found: list[Tensor] = [torch.empty(0)] * len(framed)
        for rows, features, lengths in self._features(framed):
            for i, length, own in zip(rows, lengths.tolist(), read(features).cpu()):
                found[i] = own[:length]
        return found

    @torch.no_grad()
    def _said(self, framed: Sequence[tuple[list[int], list[int]]]) -> Float[Tensor, "N classes"]:
        """The classifier's logits."""
        found = torch.empty(len(framed), self.config.classes)
        for rows, features, lengths in self._features(framed):
            padding = (torch.arange(features.shape[1], device=features.device) >= lengths[:, None]).long()
            found[rows] = self.network.classify(features, padding).float().cpu()
        return found

    def _read(
        self, texts: Sequence[str], others: Sequence[str] | None = None
    ) -> Iterator[tuple[list[int], Float[Tensor, "B T D"], Tensor]]:
        """(which texts, features of their tokens, lengths), the shortest texts first, so that little is padded."""
        return self._features(self._framed(texts, others))

    def _framed(self, texts: Sequence[str], others: Sequence[str] | None) -> list[tuple[list[int], list[int]]]:
        if isinstance(texts, str):
            raise UserError("give a list of texts; for a single one, [text]")
        return self.tokenizer.encode_framed(texts, others, length=self.config.context)

    def _features(
        self, framed: Sequence[tuple[list[int], list[int]]]
    ) -> Iterator[tuple[list[int], Float[Tensor, "B T D"], Tensor]]:
        order = sorted(range(len(framed)), key=lambda i: len(framed[i][0]))
        device = device_of(self.network)
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            lengths = torch.tensor([len(framed[i][0]) for i in rows], device=device)
            tokens = padded([framed[i][0] for i in rows], self.tokenizer.pad or 0, device=device)
            told = isinstance(self.config, EncoderConfig) and self.config.embed.types > 1
            types = padded([framed[i][1] for i in rows], device=device) if told else None
            padding = (torch.arange(tokens.shape[1], device=device) >= lengths[:, None]).long()
            segments = padding if len(set(lengths.tolist())) > 1 else None
            seen = (tokens, None, segments)
            yield rows, self.network.features(*(seen if types is None else (*seen, types))), lengths
