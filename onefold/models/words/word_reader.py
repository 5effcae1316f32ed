"""Word vectors as what a classifier of texts reads: word2vec's and GloVe's part in learning from few labels.

words → their vectors, which stay as they are → classifier
"""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.models.text_head import TextHeadConfig, adopt_head


class WordReaderConfig(Config):
    """Vectors of words, and a classifier of texts over them: by default an LSTM, of whose outputs the largest count."""

    kind: Literal["word_reader"] = "word_reader"
    vocab: int
    width: int
    context: int = 512  # words; it reads texts of any length
    classes: int = Field(default=0, ge=0)
    classifier: TextHeadConfig = TextHeadConfig(lstm=256, pooling="max", dropout=0.5)
    frozen: bool = True  # the vectors stay as they are

    def build(self) -> "WordReader":
        """The model with fresh weights from torch's current generator; under `torch.device("meta")`, shapes only."""
        return WordReader(self)


class WordReader(nn.Module):
    entry_points = ("features", "classify")  # what a parallel plan has to wrap

    def __init__(self, config: WordReaderConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.embed.weight.requires_grad_(not config.frozen)
        self.classifier = config.classifier.build(config.width, config.classes) if config.classes else None

    def features(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Each word's vector."""
        return self.embed(tokens)

    def classify(
        self, features: Float[Tensor, "B T D"], segments: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Logits of the classes of each row, whose tokens of another segment than 0 are padding."""
        return self.classifier(features, segments)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "..."]:
        features = self.features(tokens, positions, segments)
        return features if self.classifier is None else self.classify(features, segments)

    def adopt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another reader of the same words; a classifier of other classes stays fresh."""
        return adopt_head(self.state_dict(), weights)
