"""Splits that a source has of its own: parts of it named train, validation or test."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast

from onefold.core.progress import say

TRAIN, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing", "t10k")

OwnSplit = Literal["train", "held_out"] | None


def own_splits(names: Iterable[str], path: str | Path) -> dict[str, OwnSplit]:
    """Which of these parts of a source are for training and which are held out; empty: they are no splits.

    Where there are both, the validation part is held out and the test part left out: that is for the very end.
    """
    known = {name: name.lower() for name in names}
    train = [name for name, word in known.items() if word in TRAIN]
    validation = [name for name, word in known.items() if word in VALIDATION]
    test = [name for name, word in known.items() if word in TEST]
    if not train or len(train) + len(validation) + len(test) < len(known):
        return {}
    if validation and test:
        say(f"{path}: {', '.join(validation)} is held out, {', '.join(test)} left out (a source of its own to test on)")
    held_out = validation or test
    kept, aside = cast("tuple[OwnSplit, OwnSplit]", ("train" if held_out else None, "held_out"))
    return dict.fromkeys(train, kept) | dict.fromkeys(held_out, aside)
