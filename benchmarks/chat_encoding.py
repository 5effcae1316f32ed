"""Conversations encoded, and what is learned of them marked, against transformers' chat templates: the same tokenizer.

    OMP_NUM_THREADS=1 python benchmarks/chat_encoding.py --model model.gguf --rounds 5 --clock cpu

Conversations are docstrings and functions of this Python's standard library, one to four exchanges each. --model: whose
tokenizer (default: one trained here). The template is ChatML; for transformers with the marks around answers, without
which it cannot say what is learned. Both must give the same ids and learn the same of them.
"""

import argparse
import time
from collections.abc import Callable
from itertools import islice

from race import machine, race
from transformers import PreTrainedTokenizerFast

from onefold.data.sources import read
from onefold.data.text.chat.conversations import TOGETHER
from onefold.data.text.chat.docstrings import pairs
from onefold.data.text.chat.messages import Message, Row, encode, scripts, with_chat
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.tokenizers.reader import open_tokenizer

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
)


def conversations(count: int) -> list[list[Message]]:
    found = (pair.messages for document in read("stdlib") for pair in pairs(document))
    return [[m for messages in islice(found, 1 + n % 4) for m in messages] for n in range(count)]


def names_special(talk: list[Message], tokenizer: Tokenizer) -> bool:
    """Such as "<filename>", which is text here, and a control token there."""
    return any(tokenizer.mentions_special(message["content"]) for message in talk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine that others use")
    given = parser.parse_args()
    base = open_tokenizer(given.model) if given.model else Tokenizer.train((d.text for d in read("stdlib")), 8192)
    tokenizer = with_chat(base, "chatml")
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    talks = [talk for talk in conversations(given.conversations) if talk and not names_special(talk, tokenizer)]
    clock: Callable[[], float] = time.process_time if given.clock == "cpu" else time.perf_counter

    def ours() -> list[Row]:
        rows: list[Row] = []
        for start in range(0, len(talks), TOGETHER):
            written = [one for talk in talks[start : start + TOGETHER] for one in scripts(talk, tokenizer)]
            rows += encode(written, tokenizer)
        return rows

    def transformers() -> list[dict[str, list[int]]]:
        options = {"chat_template": MARKED, "return_dict": True, "return_assistant_tokens_mask": True}
        return [theirs.apply_chat_template(talk, **options) for talk in talks]

    rows, marked = ours(), transformers()
    print(machine())
    tokens, learned = sum(len(row.ids) for row in rows), sum(sum(row.learned) for row in rows)
    print(
        f"{len(talks):,} conversations, {tokens:,} tokens, {learned:,} of them learned; vocabulary {tokenizer.size:,}"
    )
    assert all(row.ids == their["input_ids"] for row, their in zip(rows, marked)), "ids differ"
    assert all(row.learned == their["assistant_masks"] for row, their in zip(rows, marked)), "what is learned differs"

    def seconds(work: Callable[[], object]) -> float:
        began = clock()
        work()
        return clock() - began

    race(
        {"onefold": lambda: seconds(ours), "transformers": lambda: seconds(transformers)},
        given.rounds,
        baseline="transformers",
    )


if __name__ == "__main__":
    main()
