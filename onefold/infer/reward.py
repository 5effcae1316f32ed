"""Asking a reward model: from prompts and answers, as a user has them, to what it reads and the scores it gives."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from onefold.core.errors import UserError
from onefold.data.text.chat.answers import Row, Said, encode_answer
from onefold.data.text.tokenizers.tokenizer import Tokenizer


def framed_answers(
    card: Mapping[str, Any], tokenizer: Tokenizer, context: int, prompts: Sequence[Said], answers: Sequence[Said]
) -> list[tuple[list[int], list[int]]]:
    """(ids, types) of each prompt with its answer, as the model that this card is of has learned to read them.

    Of what is longer than the context, the end is read. Raises UserError for a model that was not trained to score.
    """
    told = card.get("answers")
    if told is None:
        raise UserError("this model was not trained to score answers: train one with objective.kind=reward")
    if isinstance(prompts, str) or isinstance(answers, str) or len(prompts) != len(answers):
        raise UserError("give a list of prompts and a list of as many answers")
    found = []
    for n, (prompt, answer) in enumerate(zip(prompts, answers), 1):
        if isinstance(prompt, str) != isinstance(answer, str):  # the one that is text becomes a turn
            prompt, answer = _turns(prompt, "user"), _turns(answer, "assistant")
        row = Row(f"answer {n}", prompt, (answer,))
        if row.turns and not told["chat"]:
            raise UserError("this reward model reads plain text: give prompt and answer as strings")
        row = row.as_turns() if told["chat"] else row
        ids, _ = encode_answer(row.prompt, row.answers[0], tokenizer)
        found.append((ids[-context:], [0] * min(len(ids), context)))
    return found


def finite(scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Raises UserError where a score is no number: whoever maximises it would be led anywhere."""
    if len(bad := torch.nonzero(~torch.isfinite(scores))):
        place = int(bad[0])
        raise UserError(f"the score of answer {place + 1} is {float(scores[place])}: this reward model is damaged")
    return scores


def _turns(said: Said, role: str) -> Said:
    return [{"role": role, "content": said}] if isinstance(said, str) else said
