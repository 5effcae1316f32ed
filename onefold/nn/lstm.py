"""Long short-term memory (Hochreiter and Schmidhuber 1997) over texts of any length that lie packed in one batch.

A recurrence reads token after token, so its batches lie by time: the first tokens of all texts, then the second ones,
and so on, longest text first (torch's PackedSequence). Nothing is computed for padding, and no state leaks from a text
into the one that stands behind it in the same row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # h Float[texts, P], c Float[texts, H]


@dataclass(frozen=True)
class Course:
    """In which order the tokens of a batch [B, T] are read. Texts are numbered by length, the longest first.

    `places`: of each token read, in the flattened batch. `sizes`, on the CPU: how many texts have a token of each time.
    `texts`: which text each token read is of. `rows`: in which row each text stands.
    """

    shape: tuple[int, int]
    places: Int[Tensor, " N"]
    sizes: Int[Tensor, " steps"]
    texts: Int[Tensor, " N"]
    rows: Int[Tensor, " texts"]

    @classmethod
    def of(
        cls,
        like: Shaped[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        backward: bool = False,
        read: Bool[Tensor, "B T"] | None = None,
    ) -> "Course":
        """Each run of equal `segments` in a row is a text of its own; None: every row is one.

        like: anything of the batch, for its shape. backward: each text from its end to its beginning. read: which
        tokens are read at all.
        """
        (B, T), device = like.shape, like.device
        if like.is_meta:  # shapes only: as if every row were a text
            segments = read = None
        if segments is None and read is None:
            places = torch.arange(B * T, device=device).view(B, T)
            rows, sizes = torch.arange(B, device=device), torch.full((T,), B, device="cpu")
            places = (places.flip(1) if backward else places).T.reshape(-1)
            return cls((B, T), places, sizes, rows.repeat(T), rows)
        begins = torch.ones(B, T, dtype=torch.bool, device=device)
        begins[:, 1:] = False
        for kinds in (segments, read):
            if kinds is not None:
                begins[:, 1:] |= kinds[:, 1:] != kinds[:, :-1]
        starts = begins.flatten().nonzero()[:, 0]
        text = begins.flatten().cumsum(0) - 1
        lengths = starts.diff(append=starts.new_tensor([B * T]))
        inside = torch.arange(B * T, device=device) - starts[text]
        time = lengths[text] - 1 - inside if backward else inside
        if read is not None:
            wanted = read.flatten()[starts]
            lengths, kept = lengths * wanted, wanted[text]
        order = lengths.argsort(descending=True, stable=True)
        number = torch.empty_like(order)
        number[order] = torch.arange(len(order), device=device)
        key = time * len(order) + number[text]
        places = key.argsort()
        if read is not None:
            places = places[kept[places]]
            order = order[lengths[order] > 0]
        sizes = torch.bincount(time[places]).cpu()
        return cls((B, T), places, sizes, number[text[places]], starts[order] // T)

    def take(self, x: Tensor) -> Tensor:
        """What belongs to each token read, [N, …], of [B, T, …]."""
        return x.flatten(0, 1).index_select(0, self.places)

    def lay(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "B T D"]:
        """The way back; zeros where nothing was read."""
        B, T = self.shape
        if len(self.places) < B * T:
            return x.new_zeros(B * T, x.shape[1]).index_copy(0, self.places, x).view(B, T, -1)
        back = torch.empty_like(self.places)
        back[self.places] = torch.arange(len(back), device=back.device)
        return x.index_select(0, back).view(B, T, -1)

    def locked(self, x: Float[Tensor, "N D"], rate: float) -> Float[Tensor, "N D"]:
        """Variational dropout (arXiv 1512.05287): what is left out of a text is the same at all of its tokens."""
        mask = F.dropout(x.new_ones(len(self.rows), x.shape[1]), rate)
        return x * mask[self.texts]


class LSTM(nn.Module):
    """One layer in one direction; parameters are named and laid out as torch.nn.LSTM's.

    projection: width of what is read and handed on, where it is not that of the memory (arXiv 1402.1128).
    weight_drop: share of the weights from state to gates that are left out of a step of training (DropConnect, Merity
    et al. 2017, arXiv 1708.02182, section 2).
    """

    def __init__(self, width: int, hidden: int, projection: int | None = None, weight_drop: float = 0.0):
        super().__init__()
        self.hidden, self.width, self.weight_drop = hidden, projection or hidden, weight_drop
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, width))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, self.width))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden))
        self.weight_hr = nn.Parameter(torch.empty(projection, hidden)) if projection else None
        self.packed = {"weight_ih": (hidden,) * 4, "weight_hh": (hidden,) * 4}  # a matrix for each gate
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Uniform within 1/√hidden, as torch.nn.LSTM's."""
        for parameter in self.parameters():
            parameter.uniform_(-(self.hidden**-0.5), self.hidden**-0.5)

    def forward(
        self, x: Float[Tensor, "N D"], course: Course, state: State | None = None
    ) -> tuple[Float[Tensor, "N P"], State]:
        """What the layer makes of tokens in the order of `course`, and its state after the last token of each text."""
        h, c = state or self.init_state(len(course.rows), x)
        if x.is_meta:
            return self._shapes(x), (h, c)
        if not len(x):  # torch.lstm would end the process
            return x.new_zeros(0, self.width), (h, c)
        weights = [self.weight_ih, F.dropout(self.weight_hh, self.weight_drop, self.training)]
        weights += [self.bias_ih, self.bias_hh] + ([] if self.weight_hr is None else [self.weight_hr])
        y, h, c = torch.lstm(x, course.sizes, (h[None], c[None]), weights, True, 1, 0.0, self.training, False)
        return y, (h[0], c[0])

    def _shapes(self, x: Tensor) -> Tensor:
        """The same products for all times at once: what counts operations would take seconds to follow a recurrence."""
        cells = F.linear(x, self.weight_ih, self.bias_ih)[:, : self.hidden]
        h = cells if self.weight_hr is None else F.linear(cells, self.weight_hr)
        return F.linear(h, self.weight_hh, self.bias_hh)[:, : self.width]

    def init_state(self, texts: int, like: Tensor) -> State:
        return like.new_zeros(texts, self.width), like.new_zeros(texts, self.hidden)


class BiLSTM(nn.Module):
    """One layer that reads forwards and backwards, its two outputs side by side."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.forwards, self.backwards = LSTM(width, hidden), LSTM(width, hidden)

    def forward(self, x: Float[Tensor, "B T D"], segments: Int[Tensor, "B T"] | None = None) -> Float[Tensor, "B T E"]:
        found = []
        for layer, backward in ((self.forwards, False), (self.backwards, True)):
            course = Course.of(x[..., 0], segments, backward)
            found.append(course.lay(layer(course.take(x), course)[0]))
        return torch.cat(found, dim=-1)
