"""Few good conversations out of many: what each filter leaves out, and why, is counted and told.

LIMA (arXiv 2305.11206, section 2) fine-tunes on a thousand that were picked by hand, by length, style and variety.
What can be automated of that is here; whether an answer is right is not.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.core.files import atomic_file
from onefold.core.progress import Progress, say
from onefold.data.text.chat.files import read_conversations
from onefold.data.text.chat.messages import Message
from onefold.data.text.chat.rouge import Known

Number = Annotated[int, Field(ge=0)]


class SelectionConfig(Config):
    """Filters, in the order in which they are asked. Words are what blanks separate."""

    count: Annotated[int, Field(ge=1)] | None = None  # how many to keep at most
    order: Literal["file", "longest"] = "file"  # who is asked first: the longest answers (arXiv 2402.04833), say
    asked_words: tuple[Number, Number] = (1, 1000)  # of what users say, least and most
    said_words: tuple[Number, Number] = (3, 4000)  # of all answers
    without: tuple[str, ...] = ("as an ai language model", "i cannot fulfill")  # phrases in answers, in any case
    likeness: Annotated[float, Field(gt=0, le=1)] = 0.7  # most ROUGE-L of a question with any that is kept


def select(path: str | Path, out: str | Path, config: SelectionConfig | None = None) -> dict[str, int]:
    """Write the conversations of `path` that pass to `out`, in the order of the file; how many had which fate, told
    line by line.

    Raises UserError when a file cannot be read or written, or nothing passes.
    """
    config, out = config or SelectionConfig(), Path(out)
    if out.resolve() == Path(path).expanduser().resolve():
        raise UserError(f"what is selected would overwrite {path}; give another out=")
    talks = [messages for _, messages in read_conversations(path)]
    kept, fates = [], Counter()
    with Progress("selecting", len(talks), "conversations") as bar:
        for number, fate in fates_of(talks, config):
            fates[fate] += 1
            kept += [number] if fate == "kept" else []
            bar.update()
    say(f"{path}: {len(talks):,} conversations")
    for fate, number in fates.most_common():
        say(f"  {number:>9,}  {fate}")
    if not kept:
        raise UserError(f"nothing in {path} passes: widen the filters named above")
    with atomic_file(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number in sorted(kept):
            file.write(json.dumps({"messages": talks[number]}, ensure_ascii=False) + "\n")
    return dict(fates)


def fates_of(talks: Sequence[Sequence[Message]], config: SelectionConfig) -> Iterator[tuple[int, str]]:
    """(which conversation, "kept" or why not), in the order in which they are asked."""
    order = range(len(talks))
    if config.order == "longest":
        order = sorted(order, key=lambda i: -len(_of(talks[i], "assistant")))
    banned = re.compile("|".join(map(re.escape, config.without)), re.IGNORECASE) if config.without else None
    seen: set[str] = set()
    known, kept = Known(), 0
    for i in order:
        asked, said = _of(talks[i], "user"), _of(talks[i], "assistant")
        same = " ".join(asked.lower().split())
        fate = _outside(asked, config.asked_words, "question") or _outside(said, config.said_words, "answer")
        if fate:
            pass
        elif banned and (found := banned.search(said)):
            fate = f"answer with {found[0].lower()!r}"
        elif same in seen:
            fate = "question asked before, word by word"
        elif config.count is not None and kept == config.count:
            fate = "not needed: there were enough"
        elif known.nearest(asked)[0] > config.likeness:
            fate = f"question like one that is kept (ROUGE-L above {config.likeness:g})"
        else:
            fate, kept = "kept", kept + 1
            known.add(asked)
        seen.add(same)
        yield i, fate


def _of(messages: Sequence[Message], role: str) -> str:
    return "\n".join(message["content"] for message in messages if message["role"] == role)


def _outside(text: str, bounds: tuple[int, int], what: str) -> str | None:
    count, (least, most) = len(text.split()), bounds
    if count < least:
        return f"{what} of fewer than {least} words"
    return f"{what} of more than {most} words" if count > most else None
