"""ELMo (Peters et al. 2018, "Deep contextualized word representations", arXiv 1802.05365).

    tokens → embed → layers that read forwards      → features → head: what follows
                   → layers that read backwards                → head: what precedes
    all layers → a learned mix → classifier

Two language models that share token vectors and softmax and nothing else. A task takes from both directions of all
layers a mix of its own, s ∈ softmax, γ: γ Σ_j s_j h_j (equation 1); the language models stay as they are.

Token vectors come from a table, not from convolutions over characters: these are there so that no word is unknown,
which byte-level tokens see to.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

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

MIX = "mix."


class BiLMConfig(Config):
    """A pair of LSTM language models. `width` is that of the token vectors and of what each layer hands on."""

    kind: Literal["bilm"] = "bilm"
    vocab: int
    width: int = 512
    hidden: int = 4096  # cells of each layer, projected to `width`
    depth: int = Field(default=2, ge=1)
    context: int = 512  # tokens that it is trained on at once; it reads texts of any length
    dropout: float = Field(default=0.1, ge=0, lt=1)  # of what each layer reads and hands on
    classes: int = Field(default=0, ge=0)  # of the classifier; 0: none
    classifier: TextHeadConfig = TextHeadConfig(lstm=256, pooling="max", dropout=0.5)
    frozen: bool = True  # the language models under a classifier stay as they are

    def build(self) -> "BiLM":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return BiLM(self)


class ScalarMix(nn.Module):
    """γ Σ_j softmax(w)_j x_j of layers x_j, the same for all tokens and channels."""

    def __init__(self, layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, layers: Sequence[Float[Tensor, "*batch D"]]) -> Float[Tensor, "*batch D"]:
        return self.gamma * sum(share * x for share, x in zip(self.weight.softmax(0), layers))


class BiLM(nn.Module):
    """`features` of a language model are those of its last layers, forward and backward ones side by side [B, T, 2·D];
    where there are classes, the mix of all layers."""

    entry_points = ("features", "head", "classify")  # what a parallel plan has to wrap

    def __init__(self, config: BiLMConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        projection = config.width if config.hidden != config.width else None
        self.blocks = nn.ModuleList(
            nn.ModuleDict({way: LSTM(config.width, config.hidden, projection) for way in ("forwards", "backwards")})
            for _ in range(config.depth)
        )
        self.unembed = Linear(config.width, config.vocab)
        self.mix = ScalarMix(config.depth + 1) if config.classes else None
        self.classifier = config.classifier.build(2 * config.width, config.classes) if config.classes else None
        self.dropout = nn.Dropout(config.dropout)
        self.depths = config.depth + 1
        nn.init.normal_(self.embed.weight, std=config.width**-0.5)
        nn.init.normal_(self.unembed.weight, std=config.width**-0.5)
        nn.init.zeros_(self.unembed.bias)
        if config.classes and config.frozen:
            for part in (self.embed, self.blocks, self.unembed):
                part.requires_grad_(False)

    def features(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T E"]:
        """What the model makes of each token; a text of a packed row is read as if it stood alone."""
        layers = self.layers(tokens, segments)
        return layers[-1] if self.mix is None else self.mix(layers)

    def layers(
        self, tokens: Int[Tensor, "B T"], segments: Int[Tensor, "B T"] | None = None
    ) -> list[Float[Tensor, "B T E"]]:
        """The token vectors, twice, and what each layer makes of them in both directions; depth + 1 in all.

        From the second layer on, what a layer reads is added to what it makes of it.
        """
        drop = self.mix is None or not self.config.frozen  # features that stay as they are are whole
        ways = []
        for way in ("forwards", "backwards"):
            course = Course.of(tokens, segments, backward=way == "backwards")
            x = self.embed(course.take(tokens))
            found = [x]
            for i, block in enumerate(self.blocks):
                y, _ = block[way](self.dropout(x) if drop else x, course)
                x = y + x if i else y
                found.append(x)
            ways.append([course.lay(x) for x in found])
        return [torch.cat(pair, dim=-1) for pair in zip(*ways)]

    def directions(self, features: Float[Tensor, "*batch E"]) -> tuple[Tensor, Tensor]:
        """Of a language model's features those that read forwards, and those that read backwards: the head's inputs."""
        forwards, backwards = features.chunk(2, dim=-1)
        return forwards, backwards

    def head(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """Logits of the token that follows, or precedes, from the features of one direction."""
        return self.unembed(self.dropout(features))

    def readout(self, features: Float[Tensor, "*batch D"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `head` multiplies, with which matrix [V, D], and the bias it adds: for losses that need no logits."""
        return self.dropout(features), self.unembed.weight, self.unembed.bias

    def classify(
        self, features: Float[Tensor, "B T E"], segments: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Logits of the classes of each row, whose tokens of another segment than 0 are padding."""
        return self.classifier(features, segments)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Logits of the classes where there are some, else of the token that follows each."""
        features = self.features(tokens, positions, segments)
        return self.head(self.directions(features)[0]) if self.mix is None else self.classify(features, segments)

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another such model as this one takes them: what a task adds stays fresh, or behind."""
        own = self.state_dict()
        mix = {name: tensor for name, tensor in own.items() if name.startswith(MIX)}
        weights = {name: tensor for name, tensor in weights.items() if name in own or not name.startswith(MIX)}
        adopted = adopt_head(own, mix | weights)
        return with_new_tokens(adopted, self.config.vocab, ("embed.weight", "unembed.weight", "unembed.bias"))

    def depth_of(self, name: str) -> int:
        """Of the parameter `name`, from 0 (token vectors) to `depths` (heads)."""
        return depth_of(name, (self.config.depth,))
