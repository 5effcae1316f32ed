import random
from pathlib import Path

import pytest

from onefold.data.text.chat.messages import with_chat
from onefold.data.text.tokenizers.tokenizer import Tokenizer

WORDS = """the a model reads writes token tokens of in and then but file page green river run runs héllo 東京 🙂
x+=1""".split()  # noqa: SIM905


def prose(seed: int, words: int) -> str:
    """Made-up text with lines, indentation and characters of several bytes."""
    chosen = random.Random(seed)
    return "".join(chosen.choice(WORDS) + chosen.choice([" ", " ", " ", "\n", "\n    "]) for _ in range(words))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Thirty text files of very different length, in folders."""
    root = tmp_path_factory.mktemp("corpus")
    for i in range(30):
        file = root / f"part{i % 3}" / f"{i:02}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(prose(i, 20 + 25 * i), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return with_chat(Tokenizer.train((prose(i, 200) for i in range(20)), 400))
