"""What a model is trained on in one step: a frozen bundle of tensors."""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

UNASKED = -100  # a token's target where nothing is asked, as F.cross_entropy has it


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors whose first dimension is the row. Subclasses add fields, and say what they are counted in."""

    unit: ClassVar[str]
    counted: bool = True  # False: a row that another process has, only read because all processes read together

    @property
    def size(self) -> int:
        """How many units a model reads."""
        return self.rows

    def _map(self, change) -> Self:
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(t) for name, t in present.items() if isinstance(t, Tensor)})

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`; pinned memory is copied without waiting."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def inputs(self) -> tuple[Tensor | None, ...]:
        """The arguments of `model.features`, in order."""
        raise NotImplementedError

    @property
    def rows(self) -> int:
        return next(len(t) for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor))

    @property
    def slots(self) -> int:
        """How many rows of `trainer.batch` this stands for: that many, unless rows are shorter and therefore more."""
        return self.rows

    def take(self, rows: slice | Tensor) -> Self:
        """The batch of these rows only (of a slice views, no copies)."""
        return self._map(lambda t: t[rows])

    def split(self, size: int) -> list[Self]:
        """Micro-batches in order, each of at most `size` slots, and of as many rows as the others (or one more)."""
        parts = -(-self.slots // size)
        edges = [-(-self.rows * i // parts) for i in range(parts + 1)]
        return [self.take(slice(*ends)) for ends in pairwise(edges)]


@dataclass(frozen=True, kw_only=True)
class TokenBatch(Batch):
    """Tokens and what is to be predicted at each of them: what follows, or what a mask hides.

    `segments` None means that every row is one piece of one document at positions 0…T-1, so plain attention serves.
    Otherwise a row holds several documents: attention stays inside a segment and positions restart with it.

    `prefix`, where tokens are read in both directions: those that all tokens of their segment see, also earlier ones.

    `asked`, where few tokens count: columns of each row that hold all of its weights that are not 0, so that a loss
    need not look at the others.
    """

    unit = "tokens"
    tokens: Tensor  # Long[B, T]
    targets: Tensor  # Long[B, T]
    weights: Tensor  # Float[B, T]: 0 where nothing is to be learned (padding, prompts)
    positions: Tensor | None = None  # Long[B, T]
    segments: Tensor | None = None  # Long[B, T]
    prefix: Tensor | None = None  # Bool[B, T]
    asked: Tensor | None = None  # Long[B, K], different columns
    types: Tensor | None = None  # Long[B, T]: which of two texts, for models that tell them apart
    classes: Tensor | None = None  # Float[B, classes]: what is to be said of the whole row

    @property
    def size(self) -> int:
        return self.tokens.numel()

    def inputs(self) -> tuple[Tensor | None, ...]:
        more = self.types if self.prefix is None else self.prefix  # of encoders, and of decoders
        seen = self.tokens, self.positions, self.segments
        return seen if more is None else (*seen, more)


@dataclass(frozen=True, kw_only=True)
class RolloutBatch(TokenBatch):
    """Answers that a model wrote, behind their prompts, and what they were worth. Weights are 1 on tokens of answers.

    Log-probabilities are of the distribution that was sampled from: logits / temperature. What an objective makes of
    the rewards comes with the batch; `advantages` None: nothing is to be learned from it, only to be measured.
    """

    rewards: Tensor  # Float[B]: of the whole answer
    groups: Tensor  # Long[B]: answers to the same prompt have the same number
    temperature: float = 1.0
    old: Tensor | None = None  # Float[B, T]: log-probability of each target when it was written
    reference: Tensor | None = None  # Float[B, T]: by the model that the policy is to stay near
    advantages: Tensor | None = None  # Float[B, T]
    values: Tensor | None = None  # Float[B, T]: of what is read so far, when it was written
    returns: Tensor | None = None  # Float[B, T]
    penalty: Tensor | None = None  # Float[B]: what a nat of KL to the reference cost

    def narrow(self, multiple: int = 8) -> Self:
        """Without the columns at the end that hold padding only, but for a multiple of so many: fewer shapes."""
        last = int(self.weights.any(0).nonzero().max()) + 1
        return self._map(lambda t: t[:, : -(-last // multiple) * multiple] if t.ndim == 2 else t)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqBatch(TokenBatch):
    """Sources, and what is written about each: `tokens` are what the decoder reads, a start and the targets before.

    A row is one pair. Padding ends sources, where `source_segments` tells it (1) from text (0), and targets, where
    weights are 0.
    """

    source: Tensor  # Long[B, S]
    source_segments: Tensor | None = None  # Long[B, S]; None: no padding
    stands_for: int | None = None  # slots of a batch that holds a number of tokens; None: each row is one

    @property
    def slots(self) -> int:
        return self.stands_for or self.rows

    @property
    def size(self) -> int:
        return self.tokens.numel() + self.source.numel()

    def inputs(self) -> tuple[Tensor | None, ...]:
        return self.source, self.tokens, self.source_segments


@dataclass(frozen=True, kw_only=True)
class LabelledTextBatch(Batch):
    """Texts and what is known of them. `segments` tells padding (1) from text (0); None: there is none.

    targets: Float[B, classes], probabilities of what each text is; Float[B, 1], a number; Long[B, T], the class of each
    token or UNASKED; Long[B, 2], the first and the last token of an answer.
    """

    unit = "tokens"
    tokens: Tensor  # Long[B, T]
    targets: Tensor
    segments: Tensor | None = None  # Long[B, T]
    types: Tensor | None = None  # Long[B, T]: which of two texts, where the tokenizer tells them apart; None: one type

    @property
    def size(self) -> int:
        return self.tokens.numel()

    def inputs(self) -> tuple[Tensor | None, ...]:
        seen = self.tokens, None, self.segments
        return seen if self.types is None else (*seen, self.types)


@dataclass(frozen=True, kw_only=True)
class PairedTextBatch(Batch):
    """Two texts a row that belong together; padding is behind them."""

    unit = "tokens"
    tokens: Tensor  # Long[B, T]
    lengths: Tensor  # Long[B]
    others: Tensor  # Long[B, S]: the second texts
    other_lengths: Tensor  # Long[B]

    @property
    def size(self) -> int:
        return self.tokens.numel() + self.others.numel()

    def sides(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What the two encoders of a model read."""
        return (self.tokens, self.lengths), (self.others, self.other_lengths)

    def split(self, size: int) -> list[Self]:
        """Micro-batches, each as narrow as its longest texts."""
        found = []
        for part in super().split(size):
            widths = int(part.lengths.max()), int(part.other_lengths.max())
            found.append(replace(part, tokens=part.tokens[:, : widths[0]], others=part.others[:, : widths[1]]))
        return found


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch(Batch):
    """Two answers to a prompt, each behind it: the one that people preferred first. Padding is behind both.

    Where single answers are `liked` or not, the second one is the answer to another row's prompt, which tells how far a
    model has moved on answers that it was not asked for (KTO).
    """

    unit = "tokens"
    tokens: Tensor  # Long[B, 2, T]
    lengths: Tensor  # Long[B, 2]
    places: Tensor  # Long[B, 2, K]: of the tokens before those of the answers, where these are predicted
    targets: Tensor  # Long[B, 2, K]: the tokens of the answers
    weights: Tensor  # Float[B, 2, K]: 0 behind the end of an answer
    margins: Tensor | None = None  # Float[B]: by how much the first one is better
    liked: Tensor | None = None  # Float[B]: 1 or 0
    reference: Tensor | None = None  # Float[B, 2]: log-probability of each answer by the model that is compared with

    @property
    def size(self) -> int:
        return self.tokens.numel()

    def side(self, which: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """tokens, places, targets and weights of one answer of each row."""
        return tuple(t[:, which] for t in (self.tokens, self.places, self.targets, self.weights))

    def sides(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same of both, 2B rows: the two of a row beside each other."""
        return tuple(t.flatten(0, 1) for t in (self.tokens, self.places, self.targets, self.weights))


@dataclass(frozen=True, kw_only=True)
class ImageBatch(Batch):
    """Pictures and what they show, in bytes: they become numbers on the device, where that costs least."""

    unit = "images"
    images: Tensor  # UInt8[B, C, H, W]
    targets: Tensor | None = None  # Float[B, classes]: probabilities, since pictures may be mixed
    rows_of: Tensor | None = None  # Long[B]: the record that each picture is
    mean: tuple[float, ...] = (0.5,)  # of each channel, or one for all, of values from 0 to 1
    std: tuple[float, ...] = (0.5,)

    def inputs(self) -> tuple[Tensor | None, ...]:
        return (self.pixels(),)

    def pixels(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What a model sees: Float[B, C, H, W] = (images / 255 - mean) / std."""
        B, C, H, W = self.images.shape
        # Row by row with the channels inside, as loaders lay pictures out: on a CPU ten times as fast as by channel.
        scale = (torch.tensor(v, device=self.images.device).expand(C).repeat(W) for v in (self.mean, self.std))
        mean, std = (255 * v for v in scale)
        rows = self.images.permute(0, 2, 3, 1).reshape(B * H, W * C).float().sub_(mean).div_(std)
        return rows.view(B, H, W, C).permute(0, 3, 1, 2).to(dtype)
