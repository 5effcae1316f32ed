"""From what a model makes of each token of a text to the text's class: what differs from paper to paper is data.

    features [B, T, D] → LSTM, if any → pooling → hidden layer, if any → classes

GPT reads the last token; ULMFiT the last one, the largest and the mean of all, through a hidden layer; on features
that stay as they are (ELMo, word vectors) an LSTM of the task's own stands in front.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.nn.linear import Linear
from onefold.nn.lstm import BiLSTM
from onefold.nn.padding import text_places
from onefold.nn.vision.batch_norm import BatchNorm

PREFIX = "classifier."


class TextHeadConfig(Config):
    """How a text is classified. `pooling` "concat": last, largest and mean side by side (arXiv 1801.06146, 3.3)."""

    pooling: Literal["last", "mean", "max", "concat"] = "last"
    lstm: int = Field(default=0, ge=0)  # units each way of an LSTM before pooling; 0: none
    hidden: int = Field(default=0, ge=0)  # units of a layer after pooling; 0: none
    batch_norm: bool = False  # before each linear layer
    dropout: float = Field(default=0.0, ge=0, lt=1)  # before the LSTM and each linear layer

    def build(self, width: int, classes: int) -> "TextHead":
        return TextHead(self, width, classes)


class TextHead(nn.Module):
    """Logits of classes [B, C] from features [B, T, D]; tokens whose segment is not 0 are padding."""

    def __init__(self, config: TextHeadConfig, width: int, classes: int):
        super().__init__()
        self.pooling = config.pooling
        self.lstm = BiLSTM(width, config.lstm) if config.lstm else None
        inward = (2 * config.lstm or width) * (3 if config.pooling == "concat" else 1)
        self.dropout = nn.Dropout(config.dropout)
        self.hidden_norm = BatchNorm(inward) if config.batch_norm and config.hidden else None
        self.hidden = Linear(inward, config.hidden) if config.hidden else None
        self.out_norm = BatchNorm(config.hidden or inward) if config.batch_norm else None
        self.out = Linear(config.hidden or inward, classes)
        for layer in (self.hidden, self.out):
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.out.weight, std=0.02)

    def forward(
        self, features: Float[Tensor, "B T D"], segments: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B C"]:
        if self.lstm is not None:
            features = self.lstm(self.dropout(features), segments)
        x = pool(features, segments, self.pooling)
        for norm, layer in ((self.hidden_norm, self.hidden), (self.out_norm, self.out)):
            if layer is not None:
                x = layer(self.dropout(x if norm is None else norm(x)))
                x = x.relu() if layer is self.hidden else x
        return x


def pool(
    features: Float[Tensor, "B T D"],
    segments: Int[Tensor, "B T"] | None,
    how: Literal["last", "mean", "max", "concat"],
) -> Float[Tensor, "B E"]:
    """One vector a text, from the tokens whose segment is 0; None, or a text without any: from all."""
    if how == "concat":
        return torch.cat([pool(features, segments, part) for part in ("last", "max", "mean")], dim=1)
    if segments is None:
        return {"last": features[:, -1], "mean": features.mean(1), "max": features.amax(1)}[how]
    real = text_places(segments)
    if how == "last":
        place = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
        return features[torch.arange(len(place), device=real.device), place]
    if how == "max":
        return features.masked_fill(~real[..., None], -torch.inf).amax(1)
    return (features * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def adopt_head(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`given` weights with the classifier that a model has itself (`own`, its parameters and buffers) where theirs is
    missing or of another shape, and without theirs where it has none."""
    kept = {name: tensor for name, tensor in given.items() if name in own or not name.startswith(PREFIX)}
    head = {name: tensor.detach() for name, tensor in own.items() if name.startswith(PREFIX)}
    fits = all(name in kept and kept[name].shape == tensor.shape for name, tensor in head.items())
    return kept if fits else kept | head
