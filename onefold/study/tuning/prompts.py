"""What black-box tuning searches among: vectors in place of tokens, or words, put before every text.

A search knows candidates as arrays of numbers; here they become prompts, are put to the model, and are written down.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.files import atomic_file, atomic_write
from onefold.infer.label_words import WordScorer
from onefold.infer.teaching.endpoint import Endpoint
from onefold.study.tuning.search import CMAES, Evolution, Search

BETWEEN = "\n"  # words of a prompt and the text that they stand before
_WORD = re.compile(r"[^\W\d_]{2,}")


class Prompts(Protocol):
    search: Search
    together: bool  # whether a generation is computed at once

    def measure(
        self, candidates: Sequence[np.ndarray], texts: Sequence[str]
    ) -> Iterator[tuple[Float[Tensor, "N C"], int]]:
        """For each candidate, in order: scores of the classes of each text, and how many tokens were read."""
        ...

    def write(self, folder: Path, candidate: np.ndarray) -> str:
        """Write a prompt down; what to tell of it."""
        ...


class SoftPromptConfig(Config):
    """Vectors p = p0 + A z of so many `tokens`, by CMA-ES over z."""

    kind: Literal["soft"] = "soft"
    tokens: Annotated[int, Field(ge=1)] = 50
    dims: Annotated[int, Field(ge=2)] | None = 500  # of z; None: every number of the prompt by itself
    alpha: Annotated[float, Field(gt=0)] = 1.0  # the first candidates' deviation from p0, in that of token vectors
    sigma: Annotated[float, Field(gt=0)] = 1.0  # CMA-ES's first step
    diagonal: bool = False  # sep-CMA-ES, for thousands of dims
    begin: str | None = None  # p0: this text's tokens, over and over; None: tokens drawn from the vocabulary

    def build(self, model: WordScorer | Endpoint, learned: Sequence[str], population: int, seed: int) -> "SoftPrompts":
        if isinstance(model, Endpoint):
            raise UserError("a service takes texts, no vectors: prompt=words")
        return SoftPrompts(self, model, population, seed)


class SoftPrompts:
    """Candidates are z; all of a generation are read in one batch."""

    together = True

    def __init__(self, config: SoftPromptConfig, model: WordScorer, population: int, seed: int):
        self.config, self.model = config, model
        vectors = model.network.embed.token.weight.detach().float().cpu()
        random = np.random.default_rng((seed, 1))  # not what the search draws from
        self.first = vectors[self._first(random, len(vectors))]  # p0
        size, scale = self.first.numel(), config.alpha * vectors.std().item() / config.sigma
        self.dims = config.dims or size
        self.scale = scale
        self.projection: Tensor | None = None
        if config.dims is not None:
            drawn = random.standard_normal((config.dims, size), np.float32)
            self.projection = torch.from_numpy(drawn).mul_(scale / config.dims**0.5)  # Aᵀ
        self.search = CMAES(self.dims, population, config.sigma, seed, config.diagonal)

    def vectors(self, candidates: Sequence[np.ndarray]) -> Float[Tensor, "P n D"]:
        z = torch.from_numpy(np.stack(candidates)).float()
        moved = z * self.scale if self.projection is None else z @ self.projection
        return self.first + moved.view(-1, *self.first.shape)

    def measure(
        self, candidates: Sequence[np.ndarray], texts: Sequence[str]
    ) -> Iterator[tuple[Float[Tensor, "N C"], int]]:
        rows = self.model.rows(texts, room=self.config.tokens)
        read = sum(self.config.tokens + len(row) for row in rows)
        yield from ((scores, read) for scores in self.model.prompted(self.vectors(candidates), rows))

    def write(self, folder: Path, candidate: np.ndarray) -> str:
        """prompt.safetensors: the vectors [n, D]; prompt.json: the template and the classes' words behind them."""
        with atomic_file(folder / "prompt.safetensors") as file:
            save_file({"prompt": self.vectors([candidate])[0].contiguous()}, file)
        atomic_write(folder / "prompt.json", self.model.asked.to_json() + "\n")
        return f"{self.config.tokens} vectors"

    def _first(self, random: np.random.Generator, vocab: int) -> Tensor:
        n = self.config.tokens
        if self.config.begin is None:
            return torch.from_numpy(random.integers(vocab, size=n))
        ids = self.model.tokenizer.encode(self.config.begin)
        if not ids:
            raise UserError("prompt.begin has no tokens")
        return torch.tensor((ids * n)[:n])


class WordPromptConfig(Config):
    """At most `length` words, by an evolutionary search."""

    kind: Literal["words"] = "words"
    length: Annotated[int, Field(ge=1)] = 8
    candidates: str | None = None  # a file with a word or phrase a line; None: frequent words of the texts
    count: Annotated[int, Field(ge=2)] = 200  # so many of them

    def build(self, model: WordScorer | Endpoint, learned: Sequence[str], population: int, seed: int) -> "WordPrompts":
        words = usual_candidates(learned, self.count) if self.candidates is None else _read(self.candidates)
        asked = [word for word in model.asked.words.values() if word not in words]
        return WordPrompts(model, [*asked, *words], self.length, population, seed)


class WordPrompts:
    """Candidates are places in the list of words, the first of which is no word; so prompts may be shorter."""

    def __init__(self, model: WordScorer | Endpoint, words: Sequence[str], length: int, population: int, seed: int):
        self.model, self.words = model, ["", *words]
        self.together = isinstance(model, WordScorer)
        self.search = Evolution(len(self.words), length, population, seed, begin=[[0] * length])  # no prompt at all

    def text(self, candidate: np.ndarray) -> str:
        """The prompt with what stands between it and a text; empty for no prompt."""
        said = " ".join(filter(None, (self.words[i] for i in candidate.tolist())))
        return said and said + BETWEEN

    def measure(
        self, candidates: Sequence[np.ndarray], texts: Sequence[str]
    ) -> Iterator[tuple[Float[Tensor, "N C"], int]]:
        yield from self.model.ask([self.text(candidate) for candidate in candidates], texts)

    def write(self, folder: Path, candidate: np.ndarray) -> str:
        """prompt.txt: the words alone; prompt.json: the whole template with the classes' words."""
        text = self.text(candidate)
        asked = self.model.asked
        whole = asked.but({"template": text + asked.template})
        atomic_write(folder / "prompt.txt", text)
        atomic_write(folder / "prompt.json", whole.to_json() + "\n")
        return text.strip() or "(no prompt is better)"


def usual_candidates(texts: Sequence[str], count: int) -> list[str]:
    """The words that most of the texts have, the likeliest to mean something to a model that knows such texts."""
    having = Counter(word for text in texts for word in {match.group() for match in _WORD.finditer(text)})
    return sorted(having, key=lambda word: (-having[word], word))[:count]


def _read(file: str) -> list[str]:
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(words) < 2:
        raise UserError(f"{file} has fewer than two words: give a word or phrase a line")
    return words
