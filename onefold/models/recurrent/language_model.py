"""AWD-LSTM (Merity et al. 2017, "Regularizing and Optimizing LSTM Language Models", arXiv 1708.02182).

    tokens → embed → layers → head → logits

A stack of LSTMs whose last layer is as wide as the embedding, which is the head as well. It plays every part that a
decoder plays: packed rows, a state to generate with, a head that reads only what it is asked. What it has beside that
is dropout of five kinds, each drawn once for a text (section 4).
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.text_head import TextHeadConfig, adopt_head
from onefold.models.transformer import with_new_tokens
from onefold.models.vision.depths import depth_of
from onefold.nn.linear import Linear
from onefold.nn.lstm import LSTM, Course

EMBEDDING = 0.1  # token vectors begin uniform within this


class RecurrentDropoutConfig(Config):
    """Shares that training leaves out; what is left grows, so that the mean stays."""

    tokens: float = Field(default=0.0, ge=0, lt=1)  # of the vocabulary: these words are read as nothing
    inputs: float = Field(default=0.0, ge=0, lt=1)  # of what the first layer reads
    hidden: float = Field(default=0.0, ge=0, lt=1)  # of what a layer hands to the next one
    outputs: float = Field(default=0.0, ge=0, lt=1)  # of what the last one hands to the head
    weights: float = Field(default=0.0, ge=0, lt=1)  # from a layer's state to its gates

    def times(self, factor: float) -> "RecurrentDropoutConfig":
        """All rates multiplied: those of a pre-trained model in relation to each other (ULMFiT's settings)."""
        return RecurrentDropoutConfig(**{name: factor * rate for name, rate in self})


class RecurrentConfig(Config):
    """A causal language model without attention. `width` is that of the embedding and of the last layer."""

    kind: Literal["recurrent"] = "recurrent"
    vocab: int
    width: int = 400
    hidden: int = 1150  # of the layers but the last one
    depth: int = Field(default=3, ge=1)
    context: int = 512  # tokens that it is trained on at once; it reads texts of any length
    dropout: RecurrentDropoutConfig = RecurrentDropoutConfig()
    tied: bool = True  # the head is the embedding, transposed, and a bias
    classes: int = Field(default=0, ge=0)  # of the classifier; 0: none
    classifier: TextHeadConfig = TextHeadConfig(pooling="concat", hidden=50, batch_norm=True)

    def build(self) -> "Recurrent":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return Recurrent(self)

    def classifying(self, classes: int) -> "RecurrentConfig":
        """The same model with a classifier of whole texts."""
        return self.but({"classes": classes})


class RecurrentState:
    """What the layers remember of each row: its size does not grow with what was read."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]):
        self.layers = layers  # (h [B, P], c [B, H]) of each

    def bytes(self) -> int:
        return sum(h.nbytes + c.nbytes for h, c in self.layers)

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row i becomes what row rows[i] was (beams)."""
        self.layers = [(h[rows], c[rows]) for h, c in self.layers]


class Recurrent(nn.Module):
    """`features` reads tokens, `head` turns features into logits, `classify` into those of classes.

    Without a state, row after row is read whole, each text of a packed row from an empty memory. With a state, tokens
    follow those already read, and positions of -1 mark the padding that leads shorter rows.
    """

    entry_points = ("features", "activations", "head", "classify")  # what a parallel plan has to wrap

    def __init__(self, config: RecurrentConfig):
        super().__init__()
        self.config, self.rates = config, config.dropout
        self.embed = nn.Embedding(config.vocab, config.width)
        widths = [config.width, *[config.hidden] * (config.depth - 1), config.width]
        self.blocks = nn.ModuleList(
            LSTM(inward, outward, weight_drop=self.rates.weights) for inward, outward in pairwise(widths)
        )
        self.unembed = Linear(config.width, config.vocab)
        if config.tied:
            self.unembed.weight = self.embed.weight
        self.classifier = config.classifier.build(config.width, config.classes) if config.classes else None
        self.depths = config.depth + 1
        nn.init.uniform_(self.embed.weight, -EMBEDDING, EMBEDDING)
        nn.init.uniform_(self.unembed.weight, -EMBEDDING, EMBEDDING)
        nn.init.zeros_(self.unembed.bias)

    def features(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        state: RecurrentState | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the model makes of each token: the input of the head. Padding before a text gets zeros."""
        x, course = self._recurred(tokens, positions, segments, state)
        return course.lay(self._drop(x, course, self.rates.outputs))

    def activations(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
        """`features`, and what the last layer said before a part of it was dropped."""
        x, course = self._recurred(tokens, positions, segments)
        return course.lay(self._drop(x, course, self.rates.outputs)), course.lay(x)

    def _recurred(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        state: RecurrentState | None = None,
    ) -> tuple[Float[Tensor, "N D"], Course]:
        """What the last layer says, and in which order."""
        read = None if state is None or positions is None else positions >= 0
        course = Course.of(tokens, segments, read=read)
        x = self._embedded(course.take(tokens))
        x = self._drop(x, course, self.rates.inputs)
        for i, layer in enumerate(self.blocks):
            before = None if state is None else tuple(part[course.rows] for part in state.layers[i])
            x, after = layer(x, course, before)
            if state is not None:
                state.layers[i] = tuple(old.index_copy(0, course.rows, new) for old, new in zip(state.layers[i], after))
            if i < len(self.blocks) - 1:
                x = self._drop(x, course, self.rates.hidden)
        return x, course

    def head(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Logits of the next token."""
        return self.unembed(features)

    def readout(self, features: Float[Tensor, "*batch D"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `head` multiplies, with which matrix [V, D], and the bias it adds: for losses that need no logits."""
        return features, self.unembed.weight, self.unembed.bias

    def classify(
        self, features: Float[Tensor, "B T D"], segments: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Logits of the classes of each row, whose tokens of another segment than 0 are padding."""
        return self.classifier(features, segments)

    def forward(self, tokens: Int[Tensor, "B T"], *args: Any, **kwargs: Any) -> Float[Tensor, "B T V"]:
        return self.head(self.features(tokens, *args, **kwargs))

    def init_state(self, batch: int, capacity: int = 0, device=None, dtype=None) -> RecurrentState:
        """An empty memory for `batch` rows of any length."""
        like = torch.empty(0, device=device or self.embed.weight.device, dtype=dtype or self.embed.weight.dtype)
        return RecurrentState([layer.init_state(batch, like) for layer in self.blocks])

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another such model as this one takes them.

        Tokens that it adds begin as the mean of the others (ULMFiT, section 3.2); its classifier stays fresh where the
        other has none, or one of other classes.
        """
        weights = adopt_head(self.state_dict(), weights)
        return with_new_tokens(weights, self.config.vocab, ("embed.weight", "unembed.weight", "unembed.bias"))

    def depth_of(self, name: str) -> int:
        """Of the parameter `name`, from 0 (embedding) to `depths` (heads)."""
        return depth_of(name, (self.config.depth,))

    def _embedded(self, tokens: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        x = self.embed(tokens)
        if not self.training or not self.rates.tokens:
            return x
        kept = nn.functional.dropout(x.new_ones(self.config.vocab), self.rates.tokens)
        return x * kept[tokens, None]

    def _drop(self, x: Float[Tensor, "N D"], course: Course, rate: float) -> Float[Tensor, "N D"]:
        return course.locked(x, rate) if self.training and rate else x
