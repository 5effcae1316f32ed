"""Which tokens lie in which row of which batch: planned for a whole epoch, never decided at run time.

A document of n tokens to predict is cut into pieces of at most `context`. Pieces of exactly that length make *pure*
rows, which need no mask. Shorter ones are packed best-fit into *mixed* rows, where attention stays inside a segment.
Few documents are cut this way, and hardly any place is padding (cf. Ding et al. 2024, "Fewer truncations improve
language modeling"; packing by a histogram of lengths as in Krell et al. 2021). A batch is all pure or all mixed.

A plan is a pure function of (seed, epoch, lengths). Sources with shares are mixed by tokens: source s gives the
tokens from e·E·share to (e+1)·E·share of its own endless repetition to epoch e, so that the shares hold to one row
over any number of epochs, and rows are spread so that they hold inside one, too.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.random import Generator, default_rng

# A weighted epoch has at least so many rows: its shares are exact to one row of each source.
MIXTURE_ROWS = 4096
# A source too small to fill this many rows is packed several passes at a time.
SMALL_ROWS = 64


@dataclass(frozen=True)
class Pieces:
    """Parts of documents, Int[P] each: targets [offset, offset + length) of one; its first `skip` do not count."""

    document: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    skip: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    def take(self, order: np.ndarray) -> "Pieces":
        return Pieces(self.document[order], self.offset[order], self.length[order], self.skip[order])


@dataclass(frozen=True)
class Plan:
    """Rows of one epoch in order: row r holds pieces [first[r], first[r + 1]); batch b the rows [b·rows, (b+1)·rows).

    Each piece takes up its length and `frame` places more (for special tokens around it), together at most `context`.
    `pure` [batches] says of which batches every row is one full piece (or, at the very end, empty).
    """

    context: int
    rows: int
    frame: int
    pieces: Pieces
    first: np.ndarray
    pure: np.ndarray
    epoch: int = 0

    @property
    def batches(self) -> int:
        return len(self.pure)

    @property
    def tokens(self) -> int:
        """Targets that count."""
        return int((self.pieces.length - self.pieces.skip).sum())


def plan_rows(lengths: np.ndarray, context: int, rows: int, seed: int, epoch: int, frame: int = 0) -> Plan:
    """One epoch over documents of these lengths (Int[N], targets each): every target once.

    rows: of a batch, over all processes. The last batch of either kind is filled up with empty rows. frame: see Plan.
    """
    return plan_mixture(lengths, np.zeros(len(lengths), np.int64), [1], context, rows, seed, epoch, frame)


def plan_mixture(
    lengths: np.ndarray,
    sources: np.ndarray,
    shares: Sequence[float],
    context: int,
    rows: int,
    seed: int,
    epoch: int,
    frame: int = 0,
) -> Plan:
    """One epoch of a mixture: source s (sources: Int[N], of each document) gives `shares[s]` of all tokens.

    With one source an epoch is one pass over it; with several as many tokens as they hold together (at least
    MIXTURE_ROWS rows), so a small source comes round often and of a large one an epoch sees a part.
    """
    lengths = np.asarray(lengths, np.int64)
    parts = [np.flatnonzero((sources == s) & (lengths > 0)) for s in range(len(shares))]
    sizes = [int(lengths[part].sum()) for part in parts]
    exact = [Fraction(share) if size else Fraction(0) for share, size in zip(shares, sizes)]
    total = sum(exact)
    if not total:
        return _lay_out([], context, rows, frame, default_rng((seed, epoch)), epoch)
    alone = len(parts) == 1
    budget = sizes[0] if alone else max(sum(sizes), MIXTURE_ROWS * context)
    chosen = []
    for s, (part, size, share) in enumerate(zip(parts, sizes, exact)):
        if share:
            amount = budget * share / total
            low, high = int(amount * epoch), int(amount * (epoch + 1))
            repeat = 1 if alone else -(-SMALL_ROWS * context // size)
            chosen.append(
                _stretch(np.tile(part, repeat), lengths, size * repeat, (low, high), (context, frame), (seed, s))
            )
    return _lay_out(chosen, context, rows, frame, default_rng((seed, epoch)), epoch)


def plan_evaluation(lengths: np.ndarray, context: int, rows: int, stride: int | None = None, frame: int = 0) -> Plan:
    """Every target once, in an order that is always the same and of which every beginning is a fair sample.

    stride: documents longer than the context are read by windows that advance so many tokens; each predicts only its
    last `stride` targets, and so sees at least context - stride tokens before them. None: windows do not overlap.
    """
    lengths = np.asarray(lengths, np.int64)
    longest = context - frame  # piece
    step = longest if stride is None else stride
    if not 0 < step <= longest:
        raise ValueError(f"stride {stride} is not between 1 and the context {longest}")
    further = np.maximum(0, -(-(lengths - longest) // step))  # windows after the first
    count = np.where(lengths > 0, 1 + further, 0)
    document = np.repeat(np.arange(len(lengths)), count)
    window = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    begin = np.where(window == 0, 0, longest + (window - 1) * step)  # the first target that counts
    end = np.minimum(longest + window * step, lengths[document])
    # An overlapping window is filled with what lies before it; without overlap the last one stays short.
    offset = begin if step == longest else np.maximum(0, end - longest)
    pieces = Pieces(document, offset, end - offset, begin - offset)
    generator = default_rng(0)
    order, first = pack(pieces.length + frame, context)
    packed = _Rows(pieces.take(order), first)
    return _lay_out([packed.take(generator.permutation(len(packed)))], context, rows, frame, generator)


def cut(lengths: np.ndarray, context: int, generator: Generator) -> Pieces:
    """Documents of these lengths in pieces of `context`, and of each what is left over at a random place among them.

    So the cuts lie elsewhere in the next epoch, and there are not more short pieces than there must be.
    """
    full, rest = np.divmod(lengths, context)
    count = full + (rest > 0)
    document = np.repeat(np.arange(len(lengths)), count)
    number = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    short = np.where(rest > 0, generator.integers(0, full + 1), count)[document]
    rest = rest[document]
    offset = number * context - np.where(number > short, context - rest, 0)
    length = np.where(number == short, rest, context)
    return Pieces(document, offset, length, np.zeros_like(length))


def pack(lengths: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit-decreasing packing of pieces (Int[P], each 1…context) into rows of `context`.

    Returns (order Int[P], first Int[R + 1]): row r holds the pieces order[first[r]:first[r+1]]. Works on counts of
    equal lengths: its time hardly grows with the number of pieces. Equal ones are used in the order given.
    """
    counts = np.bincount(lengths, minlength=context + 1)
    groups: dict[int, list[_Group]] = defaultdict(list)  # rows that are alike, by the room left in them
    rooms: list[int] = []  # sorted keys of the groups that are not empty

    def keep(room: int, number: int, content: tuple[tuple[int, int], ...]) -> None:
        if not groups[room]:
            insort(rooms, room)
        groups[room].append((number, content))

    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            place = bisect_left(rooms, length)  # the best fit
            new = place == len(rooms)
            if new:
                room, number, content = context, left, ()
            else:
                room = rooms[place]
                number, content = groups[room].pop()
                if not groups[room]:
                    rooms.pop(place)
            fit = room // length
            if full := min(number, left // fit):
                keep(room - fit * length, full, (*content, (length, fit)))
                number, left = number - full, left - full * fit
            if left and number:
                keep(room - left * length, 1, (*content, (length, left)))
                number, left = number - 1, 0
            if number and not new:
                keep(room, number, content)
    return _expand(lengths, counts, [group for room in rooms for group in groups[room]])


_Group = tuple[int, tuple[tuple[int, int], ...]]  # (number of rows, ((length, how many of it in each row), …))


def _expand(lengths: np.ndarray, counts: np.ndarray, groups: Sequence[_Group]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of actual pieces from groups of rows that are alike."""
    by_length = np.argsort(lengths, kind="stable")
    used = np.cumsum(counts) - counts  # where the next unused piece of each length stands in by_length
    order, sizes = [], []
    for number, content in groups:
        columns = []
        for length, each in content:
            begin = used[length]
            used[length] = end = begin + number * each
            columns.append(by_length[begin:end].reshape(number, each))
        block = np.concatenate(columns, axis=1)
        order.append(block.reshape(-1))
        sizes.append(np.full(number, block.shape[1]))
    if not order:
        return np.empty(0, np.int64), np.zeros(1, np.int64)
    return np.concatenate(order), np.concatenate([[0], np.cumsum(np.concatenate(sizes))])


@dataclass(frozen=True)
class _Rows:
    """Packed rows that have no place in a batch yet: row r holds pieces [first[r], first[r + 1])."""

    pieces: Pieces
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    def take(self, rows: np.ndarray) -> "_Rows":
        count = np.diff(self.first)[rows]
        first = np.concatenate([[0], np.cumsum(count)])
        inside = np.arange(first[-1]) - np.repeat(first[:-1], count)
        return _Rows(self.pieces.take(np.repeat(self.first[:-1][rows], count) + inside), first)

    def tokens(self) -> np.ndarray:
        return np.diff(np.concatenate([[0], np.cumsum(self.pieces.length)])[self.first])

    def pure(self, longest: int) -> np.ndarray:
        """Bool[R]: one piece that fills the row."""
        return (np.diff(self.first) == 1) & (self.tokens() == longest)


def _join(parts: Sequence[_Rows]) -> _Rows:
    fields = [np.concatenate([getattr(p.pieces, f) for p in parts]) for f in Pieces.__annotations__]
    counts = np.concatenate([np.diff(p.first) for p in parts])
    return _Rows(Pieces(*fields), np.concatenate([[0], np.cumsum(counts)]))


def _stretch(
    documents: np.ndarray,
    lengths: np.ndarray,
    size: int,
    span: tuple[int, int],
    room: tuple[int, int],
    key: tuple[int, ...],
) -> _Rows:
    """The rows of one source's endless repetition whose first token is in `span`; `size`: tokens of one repetition.

    room: (context, frame).
    """
    low, high = span
    context, frame = room
    found = []
    for repetition in range(low // size, -(-high // size)):
        generator = default_rng((*key, repetition))
        pieces = cut(lengths[documents], context - frame, generator)
        pieces = pieces.take(generator.permutation(len(pieces)))
        order, first = pack(pieces.length + frame, context)
        named = Pieces(documents[pieces.document], pieces.offset, pieces.length, pieces.skip)
        rows = _Rows(named.take(order), first)
        rows = rows.take(generator.permutation(len(rows)))
        start = repetition * size + np.cumsum(rows.tokens()) - rows.tokens()
        found.append(rows.take(np.flatnonzero((low <= start) & (start < high))))
    return _join(found)


def _lay_out(parts: Sequence[_Rows], context: int, rows: int, frame: int, generator: Generator, epoch: int = 0) -> Plan:
    """Batches of the rows of all sources, each source spread evenly."""
    if not parts or not sum(map(len, parts)):
        nothing = np.empty(0, np.int64)
        return Plan(context, rows, frame, Pieces(*[nothing] * 4), np.zeros(1, np.int64), np.empty(0, bool), epoch)
    every = _join(parts)
    pure = every.pure(context - frame)
    source = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    full = spread(np.flatnonzero(pure), source, generator)
    packed = spread(np.flatnonzero(~pure), source, generator)
    if len(packed):  # full rows that make no whole batch of their own may as well stand among the others
        whole = len(full) // rows * rows
        full, packed = full[:whole], np.concatenate([packed, full[whole:]])
    kinds = [_batches(full, rows), _batches(packed, rows)]
    kind = np.repeat([0, 1], [len(k) for k in kinds])
    order = spread(np.arange(len(kind)), kind, generator)
    places = np.concatenate(kinds)[order].reshape(-1)
    rows_with_none = _join([every, _Rows(every.pieces.take(np.empty(0, np.int64)), np.zeros(2, np.int64))])
    laid = rows_with_none.take(np.where(places < 0, len(every), places))
    return Plan(context, rows, frame, laid.pieces, laid.first, kind[order] == 0, epoch)


def _batches(chosen: np.ndarray, rows: int) -> np.ndarray:
    """[batches, rows], -1 where the last batch has no row."""
    filled = np.full((-(-len(chosen) // rows), rows), -1)
    filled.reshape(-1)[: len(chosen)] = chosen
    return filled


def spread(items: np.ndarray, kind: np.ndarray, generator: Generator) -> np.ndarray:
    """Items so arranged that every stretch holds each kind in the proportion of the whole, give or take one."""
    mine = kind[items]
    order = np.argsort(mine, kind="stable")
    count = np.bincount(mine)
    number = np.empty(len(items), np.int64)
    number[order] = np.arange(len(items)) - np.repeat(np.cumsum(count) - count, count)
    return items[np.argsort((number + generator.random(len(count))[mine]) / count[mine], kind="stable")]
