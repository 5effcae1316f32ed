"""Texts classified by a language model that was never trained to: each is put into a template, and the class whose word
is likeliest to follow is the answer (Schick and Schütze 2020, arXiv 2001.07676, section 3).

What stands before a text may be tokens, or vectors in the place of tokens (a soft prompt), one set for many texts or
many sets for the same texts: each set is then read once, and all texts go on from what it left in the cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation.engine import device_of
from onefold.infer.model import Model
from onefold.models.transformer import DecoderConfig

TEXT, ASKED = "{text}", "label_words"  # the latter: in the card of a model that was tuned to be asked so
TOGETHER = 8192  # tokens computed at once: bounds memory, and still fills the machine


class LabelWordsConfig(Config):
    """How a text is put to a model, and the word that stands for each class."""

    template: str = "{text}\nIt is about"
    words: Annotated[dict[str, str], Field(min_length=2)]  # class → word

    @field_validator("template")
    @classmethod
    def _has_text(cls, template: str) -> str:
        if template.count(TEXT) != 1:
            raise ValueError("a template must have {text} once")
        return template.rstrip(" ")  # the blank is read with the word, as one token: two would be another text

    @field_validator("words")
    @classmethod
    def _told_apart(cls, words: dict[str, str]) -> dict[str, str]:
        if not all(word.strip() for word in words.values()):
            raise ValueError("every class must have a word")
        return words

    @property
    def classes(self) -> list[str]:
        return list(self.words)

    def put(self, text: str) -> str:
        """What a model goes on with."""
        return self.template.replace(TEXT, text)

    def following(self) -> list[str]:
        """The words as they stand behind a filled template, with the blank between them."""
        blank = "" if self.template[-1].isspace() else " "
        return [blank + word.strip() for word in self.words.values()]

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """The first token of each word behind the template. Raises UserError where two classes begin with the same."""
        behind = "a" + self.template.partition(TEXT)[2]
        before, found = tokenizer.encode(behind), []
        for word in self.following():
            whole = tokenizer.encode(behind + word)
            same = next((i for i, (a, b) in enumerate(zip(whole, before)) if a != b), min(len(whole), len(before)))
            if same == len(whole):
                raise UserError(f"the tokenizer reads nothing of the word {word!r}; give another one")
            found.append(whole[same])
        for i, token in enumerate(found):
            if token in found[:i]:
                a, b = (self.following()[n].strip() for n in (found.index(token), i))
                raise UserError(
                    f"{a!r} and {b!r} begin with the same token of this model; give one of them another word"
                )
        return found


class WordScorer:
    """How likely each class's word is to follow texts, by a model that goes on with them.

    Only the words' rows of the model's head are multiplied, so all that is known is how the words compare.
    """

    def __init__(self, model: Model, asked: LabelWordsConfig):
        config = model.config
        if not isinstance(config, DecoderConfig) or config.prefix:
            raise UserError("label words are asked of a decoder that reads from left to right")
        self.asked, self.tokenizer, self.network, self.context = asked, model.tokenizer, model.network, config.context
        self.words = torch.tensor(asked.tokens(self.tokenizer), device=device_of(self.network))

    def rows(self, texts: Sequence[str], before: str = "", room: int = 0) -> list[list[int]]:
        """What the model reads of each text, with `before` in front; `room` tokens of its context are left free.

        Of texts that are too long the end is left out. Raises UserError where not even an empty one fits.
        """
        most, prefix = self.context - room, self.tokenizer.prefix
        fixed = len(prefix) + len(self.tokenizer.encode(before + self.asked.put("")))
        if fixed >= most:
            raise UserError(f"{fixed} tokens around a text leave no room for it: the model reads {max(most, 0)}")
        found = []
        for text in texts:
            ids = [*prefix, *self.tokenizer.encode(before + self.asked.put(text))]
            left = len(self.tokenizer.encode(text)) if len(ids) > most else 0
            while len(ids) > most and left:
                left = max(0, left - (len(ids) - most))
                shorter = self.tokenizer.decode(self.tokenizer.encode(text)[:left])
                ids = [*prefix, *self.tokenizer.encode(before + self.asked.put(shorter))]
            found.append(ids)
        return found

    @torch.no_grad()
    def scores(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "N C"]:
        """Log-probability of each class's word among those of all classes, on the CPU."""
        found = torch.empty(len(rows), len(self.words))
        for some, tokens, lengths in self._batches(rows):
            features = self.network.features(tokens)
            found[some] = self._read(features[torch.arange(len(some)), lengths - 1])
        return found

    @torch.no_grad()
    def prompted(self, prompts: Float[Tensor, "P n D"], rows: Sequence[Sequence[int]]) -> Float[Tensor, "P N C"]:
        """`scores` behind each of the prompts: vectors that stand where the vectors of n tokens would."""
        count, n, _ = prompts.shape
        weight = self.network.embed.token.weight
        prompts = prompts.to(weight.device, weight.dtype)
        found = torch.empty(count, len(rows), len(self.words))
        for some, tokens, lengths in self._batches(rows):
            R, T = tokens.shape
            each = max(1, TOGETHER // (R * T))
            for start in range(0, count, each):
                part = prompts[start : start + each]
                state = self.network.init_state(len(part), n + T)
                with in_place_of_tokens(self.network.embed.token, part):
                    self.network.features(tokens.new_zeros(len(part), n), state=state)
                state.fork(R)
                features = self.network.features(tokens.repeat(len(part), 1), state=state)
                last = features.view(len(part), R, T, -1)[:, torch.arange(R), lengths - 1]
                found[start : start + each, some] = self._read(last)
        return found

    def ask(self, befores: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[Float[Tensor, "N C"], int]]:
        """For each of `befores`, in order, the scores of all texts behind it, and how many tokens that took."""
        rows = [row for before in befores for row in self.rows(texts, before)]
        found = self.scores(rows).view(len(befores), len(texts), -1)
        for i, scores in enumerate(found):
            yield scores, sum(map(len, rows[i * len(texts) : (i + 1) * len(texts)]))

    def best(self, texts: Sequence[str], top: int = 3, room: int = 0) -> list[list[tuple[str, float]]]:
        """The likeliest classes of each text with their shares, best first. room: as in `rows`."""
        names, found = self.asked.classes, []
        for shares in self.scores(self.rows(texts, room=room)).exp().tolist():
            found.append(sorted(zip(names, shares), key=lambda item: -item[1])[:top])
        return found

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(which rows, their tokens with padding behind, their lengths), shortest first.

        Nothing of a text sees what comes behind it, so padding needs no mask.
        """
        order, device = sorted(range(len(rows)), key=lambda i: len(rows[i])), self.words.device
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(rows[order[end]]) <= TOGETHER:
                end += 1
            some = order[start:end]
            lengths = torch.tensor([len(rows[i]) for i in some], device=device)
            tokens = torch.zeros(len(some), len(rows[some[-1]]), dtype=torch.long, device=device)
            for row, i in enumerate(some):
                tokens[row, : len(rows[i])] = torch.tensor(rows[i], device=device)
            yield some, tokens, lengths
            start = end

    def _read(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        x, weight, bias = self.network.readout(features)
        logits = F.linear(x, weight[self.words], None if bias is None else bias[self.words])
        return logits.float().log_softmax(-1).cpu()


@contextmanager
def in_place_of_tokens(embedding: nn.Module, vectors: Float[Tensor, "B n D"]) -> Iterator[None]:
    """Let `embedding` return these vectors, whatever tokens it is asked for."""
    handle = embedding.register_forward_hook(lambda *_: vectors)
    try:
        yield
    finally:
        handle.remove()


def label_loss(
    scores: Float[Tensor, "*batch N C"], labels: Tensor, kind: str, margin: float = 2.0
) -> Float[Tensor, "*batch"]:
    """Mean over N texts of log-probabilities up to a constant a text; labels Long[N].

    "cross_entropy" over the classes, or "hinge": Σ over wrong classes of max(0, margin + theirs − the right one's)
    (arXiv 2201.03514, section 3.2; margin as the authors' code has it).
    """
    chosen = labels.expand(scores.shape[:-1])[..., None]
    if kind == "cross_entropy":
        return -scores.log_softmax(-1).gather(-1, chosen)[..., 0].mean(-1)
    over = (scores - scores.gather(-1, chosen) + margin).clamp(min=0)
    return over.scatter(-1, chosen, 0.0).sum(-1).mean(-1)


def accuracy(scores: Float[Tensor, "*batch N C"], labels: Tensor) -> Float[Tensor, "*batch"]:
    """Share of the texts whose right class has the highest score."""
    return (scores.argmax(-1) == labels).float().mean(-1)


def usual_words(classes: Sequence[str]) -> Mapping[str, str]:
    """Each class's own name, spelled as words are."""
    return {name: name.replace("_", " ").replace(".", " ").strip() or name for name in classes}
