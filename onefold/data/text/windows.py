"""Batches of text to go on with: every token is asked what follows it."""

import numpy as np

from onefold.core.batch import TokenBatch
from onefold.data.ahead import to_tensor
from onefold.data.records import Ragged
from onefold.data.text.layout import Layout
from onefold.data.text.plan import Plan


def gather(plan: Plan, rows: slice, tokens: Ragged, pad: int, learned: Ragged | None = None) -> TokenBatch:
    """The batch of these rows of a plan, which lie in one batch of it.

    tokens: start, text, end of every document; input t predicts target t + 1. learned: for each token 1 if it is to be
    predicted; None: all are. Places that the plan leaves empty are `pad` with weight 0, in a segment of their own.
    """
    layout = Layout(plan, rows)
    pieces, lengths, context = layout.pieces, layout.lengths, plan.context
    starts = tokens.starts[pieces.document] + pieces.offset
    alone = (layout.counts == 1).all() and (lengths == context).all()
    if alone and learned is None and not pieces.skip.any():
        return _windows(tokens, starts, context)
    weights = layout.inside >= pieces.skip[layout.piece]
    if learned is not None:
        weights = weights * learned.gather(starts + 1, lengths)
    return TokenBatch(
        tokens=layout.filled(tokens.gather(starts, lengths), pad, np.int64),
        targets=layout.filled(tokens.gather(starts + 1, lengths), pad, np.int64),
        weights=layout.filled(weights, 0, np.float32),
        **layout.packed(),
    )


def _windows(tokens: Ragged, starts: np.ndarray, context: int) -> TokenBatch:
    """Rows that are one piece from end to end, which most are: what `gather` makes of them, without its tables."""
    rows = len(starts)
    found = tokens.gather(starts, np.full(rows, context + 1)).reshape(rows, context + 1)
    return TokenBatch(
        tokens=to_tensor(found[:, :-1].astype(np.int64)),
        targets=to_tensor(found[:, 1:].astype(np.int64)),
        weights=to_tensor(np.ones((rows, context), np.float32)),
    )
