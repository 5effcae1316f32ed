"""Which tokens of a batch are text and which only fill its rows."""

from jaxtyping import Bool, Int
from torch import Tensor


def text_places(segments: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Where rows have text (segment 0). A row without any shows its padding: the mean of nothing, or attention to it,
    would be NaN, for the gradients of the whole batch."""
    text = segments == 0
    return text | ~text.any(1, keepdim=True)
