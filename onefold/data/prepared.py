"""Prepared data: records of a training and a held-out split in a folder, made once for the same settings."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from onefold.core import dist
from onefold.core.errors import UserError
from onefold.core.files import atomic_folder, exclusive, put_back, verify_folder
from onefold.core.progress import say
from onefold.data.facts import FACTS, PROCESSOR, read_contents

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
LAYOUT = 2  # of a prepared folder; with another number, those of older versions are left alone and made anew


class Saves(Protocol):
    """How a model reads the data: Tokenizer, PictureReader, Vocabulary."""

    def save(self, folder: Path) -> None: ...


def folder_name(kind: str, what: Mapping[str, Any]) -> str:
    """A name that is the same for the same settings only."""
    return f"{kind}-{hashlib.sha256(json.dumps([LAYOUT, what], sort_keys=True).encode()).hexdigest()[:16]}"


def prepared(
    target: Path,
    stamps: Mapping[str, str | None],
    keep: bool,
    build: Callable[[Path], tuple[Saves, dict[str, Any]]],
) -> bool:
    """Fill `target` by `build` unless it is there, whole, and made from the same sources; whether it had to.

    build: writes the records of both splits into a folder and returns (how a model reads them, facts). stamps: of every
    source, None where it is gone: then what was prepared serves on. keep: it also does where a source has changed. The
    main process builds, the others wait. Raises UserError when it is damaged (the file is named) and cannot be built
    again.
    """
    wanting = dist.is_main() and _wanting(target, stamps, keep)
    if wanting:
        with exclusive(target), atomic_folder(target) as folder:
            processor, facts = build(folder)
            (folder / PROCESSOR).mkdir()
            processor.save(folder / PROCESSOR)
            contents = {"layout": LAYOUT, "stamps": dict(stamps), "facts": facts}
            (folder / FACTS).write_text(json.dumps(contents, indent=1))
    dist.barrier()
    return wanting


def _wanting(target: Path, stamps: Mapping[str, str | None], keep: bool) -> bool:
    gone = [path for path, stamp in stamps.items() if stamp is None]
    put_back(target)
    if not target.exists():
        if gone:
            raise UserError(f"{gone[0]} does not exist: give a folder or file that is there")
        return True
    if problems := verify_folder(target):
        if gone:
            raise UserError(f"{problems[0]}, and {gone[0]} is gone, so it cannot be prepared again")
        say(f"{problems[0]}: preparing the data again from its source")
        return True
    if gone:
        say(f"{gone[0]} is gone; going on with what was prepared from it in {target}")
        return False
    if read_contents(target)["stamps"] == dict(stamps):
        return False
    if keep:
        say(f"the source has changed since; going on with what was prepared from it in {target}")
    else:
        say("the source has changed since it was prepared: preparing it again")
    return not keep
