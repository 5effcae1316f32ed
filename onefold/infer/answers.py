"""Where in a text, however long, an encoder finds the answer to a question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.data.text.frames import Frame, frames

if TYPE_CHECKING:
    from onefold.infer.text_encoder import TextEncoder

OVERLAP = 128  # tokens that neighbouring windows of a long text share (arXiv 1810.04805's code)
LONGEST = 30  # tokens of an answer


@dataclass(frozen=True)
class Answer:
    """A passage of the context, where it stands, and its probability among all of its window; empty: there is none."""

    text: str
    start: int
    end: int
    share: float


@torch.no_grad()
def answer_questions(
    encoder: "TextEncoder", questions: Sequence[str], contexts: Sequence[str], none: bool = True, longest: int = LONGEST
) -> list[Answer]:
    """The likeliest answer to each question in its context, at most `longest` tokens long.

    Of all windows the passage counts whose two ends have the largest sum of logits. With `none`, there is no answer
    where in every window the first token, which stands for that, has more (arXiv 1810.04805, section 4.3).
    """
    if encoder.task != "span" or not encoder.config.classes:
        raise UserError("this model does not find answers; train one on questions: task=span data=… start=…")
    windows = frames(encoder.tokenizer, contexts, questions, encoder.config.context, OVERLAP)
    for question, own in zip(questions, windows):
        if not own:
            raise UserError(f"the question is too long to be read with a text: {question[:40]!r}")
    flat = [window for some in windows for window in some]
    logits = encoder.outputs([(w.ids, w.types) for w in flat], lambda f: encoder.network.classify(f).float())
    found: list[Answer] = []
    begun = 0
    for context, own in zip(contexts, windows):
        options = [_best(w, logits[begun + i], context, longest) for i, w in enumerate(own)]
        begun += len(own)
        best, score = max((passage for passage, _ in options), key=lambda option: option[1])
        empty, least = min((nothing for _, nothing in options), key=lambda option: option[1])
        found.append(empty if (none and least > score) or score == -torch.inf else best)
    return found


def _best(window: Frame, logits: Tensor, context: str, longest: int) -> tuple[tuple[Answer, float], ...]:
    """(answer, sum of logits) of the best passage of a window, and of none in it. logits: Float[T, 2]."""
    inside = torch.tensor([place is not None for place in window.places])
    first = inside.clone()
    first[0] = True  # stands for no answer
    start, end = logits.masked_fill(~first[:, None], -torch.inf).log_softmax(0).unbind(1)  # shares of the window's own
    both = start[:, None] + end
    allowed = torch.ones_like(both, dtype=torch.bool).triu().tril(longest - 1) & inside[:, None] & inside
    place = int(both.masked_fill(~allowed, -torch.inf).argmax())
    i, j = divmod(place, len(start))
    nothing = Answer("", 0, 0, float(both[0, 0].exp())), float(logits[0].sum())
    if not allowed[i, j]:
        return (nothing[0], -torch.inf), nothing
    begin, stop = window.places[i][0], window.places[j][1]
    passage = Answer(context[begin:stop], begin, stop, float(both[i, j].exp()))
    return (passage, float(logits[i, 0] + logits[j, 1])), nothing
