"""One text in, another out, without self-attention: what the first Transformer was compared with.

    source → bidirectional LSTMs → memory, and their last states
    tokens → LSTMs that begin with these states (→ attention to the memory) → head → logits

Without attention all that is known of a source are the states at its ends (Sutskever et al. 2014, arXiv 1409.3215);
with it the decoder looks back at every token, by the "general" score of Luong et al. 2015 (arXiv 1508.04025).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.transformer import with_new_tokens
from onefold.nn.linear import Linear
from onefold.nn.lstm import LSTM, Course
from onefold.nn.padding import text_places

EMBEDDING = 0.1  # token vectors begin uniform within this


class RecurrentSeq2SeqConfig(Config):
    """Two stacks of LSTMs of the same width, which is that of the embedding, too."""

    kind: Literal["recurrent_seq2seq"] = "recurrent_seq2seq"
    vocab: int  # of both sides
    width: int
    depth: int = Field(default=2, ge=1)  # layers a side
    context: int = 512  # what it is trained on, a side; it reads texts of any length
    attention: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of token vectors, and of what every layer hands on
    start: int | None = None  # the token that the decoder reads first; None: the tokenizer's `decoder_start`
    first: int | None = None  # the token that every text begins with when it is written; None: any

    @model_validator(mode="after")
    def _fits(self) -> "RecurrentSeq2SeqConfig":
        if self.width % 2:
            raise ValueError(f"width ({self.width}) must be even: half of it reads forwards, half backwards")
        return self

    def build(self) -> "RecurrentSeq2Seq":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return RecurrentSeq2Seq(self)


class RecurrentSeq2SeqState:
    """What is known of each row while its text is written; its size does not grow with that."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], memory: Tensor, seen: Tensor | None):
        self.layers = layers  # (h, c) of each decoder layer, Float[B, D]
        self.memory, self.seen = memory, seen  # Float[B, S, D], Bool[B, S] where the source has text

    def bytes(self) -> int:
        return self.memory.nbytes + sum(h.nbytes + c.nbytes for h, c in self.layers)

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row i becomes what row rows[i] was (beams)."""
        self.layers = [(h[rows], c[rows]) for h, c in self.layers]
        self.memory = self.memory[rows]
        self.seen = None if self.seen is None else self.seen[rows]


class RecurrentSeq2Seq(nn.Module):
    """`features` reads sources and what has been written about them, `head` turns features into logits.

    To write, `init_state` reads the sources once; `decode` then takes new tokens, with that state.
    """

    entry_points = ("features", "head")  # what a parallel plan has to wrap

    def __init__(self, config: RecurrentSeq2SeqConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Embedding(config.vocab, width)
        self.forwards = nn.ModuleList(LSTM(width, width // 2) for _ in range(config.depth))
        self.backwards = nn.ModuleList(LSTM(width, width // 2) for _ in range(config.depth))
        self.blocks = nn.ModuleList(LSTM(width, width) for _ in range(config.depth))
        self.score = Linear(width, width, bias=False) if config.attention else None
        self.combine = Linear(2 * width, width, bias=False) if config.attention else None
        self.unembed = Linear(width, config.vocab)
        self.unembed.weight = self.embed.weight
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.embed.weight, -EMBEDDING, EMBEDDING)
        nn.init.zeros_(self.unembed.bias)

    def features(
        self,
        source: Int[Tensor, "B S"],
        tokens: Int[Tensor, "B T"],
        source_segments: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the model makes of each token, given its row's source: the input of `head`."""
        return self.decode(tokens, state=self.init_state(source, source_segments))

    def head(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Logits of the next token."""
        return self.unembed(features)

    def readout(self, features: Float[Tensor, "*batch D"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `head` multiplies, with which matrix [V, D], and the bias it adds: for losses that need no logits."""
        return features, self.unembed.weight, self.unembed.bias

    def forward(
        self,
        source: Int[Tensor, "B S"],
        tokens: Int[Tensor, "B T"],
        source_segments: Int[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        return self.head(self.features(source, tokens, source_segments))

    def init_state(
        self, source: Int[Tensor, "B S"], source_segments: Int[Tensor, "B S"] | None = None, capacity: int = 0
    ) -> RecurrentSeq2SeqState:
        """Read the sources; the state of rows of which nothing is written yet. Any number of tokens may follow."""
        seen = None if source_segments is None else text_places(source_segments)
        courses = [Course.of(source, read=seen, backward=backward) for backward in (False, True)]
        x = self.dropout(self.embed(source))
        layers = []
        for i in range(self.config.depth):
            read, ends = [], []
            for course, side in zip(courses, (self.forwards, self.backwards)):
                y, state = side[i](course.take(x), course)
                read.append(course.lay(y))
                ends.append([_by_row(part, course, len(source)) for part in state])
            layers.append(tuple(torch.cat(parts, dim=-1) for parts in zip(*ends)))
            x = self.dropout(torch.cat(read, dim=-1))
        return RecurrentSeq2SeqState(layers, x, seen)

    def decode(
        self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None, *, state: RecurrentSeq2SeqState
    ) -> Float[Tensor, "B T D"]:
        """The features of tokens that follow those already in the state; positions of -1 mark padding before them."""
        x = self._read(tokens, positions, state)
        if self.combine is None:
            return x
        return torch.tanh(self.combine(torch.cat((self._weights(x, state) @ state.memory, x), dim=-1)))

    def attention(self, source: Int[Tensor, "B S"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T S"]:
        """How much each token takes from each of its source, which has no padding; for looking at."""
        state = self.init_state(source)
        return self._weights(self._read(tokens, None, state), state)

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another such model as this one takes them: tokens it adds begin as the mean of the others."""
        return with_new_tokens(weights, self.config.vocab, ("embed.weight", "unembed.bias"))

    def _read(self, tokens: Tensor, positions: Tensor | None, state: RecurrentSeq2SeqState) -> Float[Tensor, "B T D"]:
        """What the layers make of new tokens; the state remembers them."""
        course = Course.of(tokens, read=None if positions is None else positions >= 0)
        x = course.take(self.dropout(self.embed(tokens)))
        for i, layer in enumerate(self.blocks):
            h, c = state.layers[i]
            x, after = layer(x, course, (h[course.rows], c[course.rows]))
            state.layers[i] = tuple(old.index_copy(0, course.rows, new) for old, new in zip((h, c), after))
            x = self.dropout(x)
        return course.lay(x)

    def _weights(self, x: Float[Tensor, "B T D"], state: RecurrentSeq2SeqState) -> Float[Tensor, "B T S"]:
        scores = self.score(x) @ state.memory.mT  # [B, T, S]
        if state.seen is not None:
            scores = scores.masked_fill(~state.seen[:, None], -torch.inf)
        return scores.float().softmax(-1).to(x.dtype)


def _by_row(x: Float[Tensor, "texts D"], course: Course, rows: int) -> Float[Tensor, "B D"]:
    """The last states of texts, where their rows are."""
    return x.new_zeros(rows, x.shape[1]).index_copy(0, course.rows, x)
