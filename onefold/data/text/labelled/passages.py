"""Labelled text that is at hand: passages of the standard library, and the packages they come from.

What a passage is about shows in what it does and calls; often its package is named in it, too. Passages of one file are
alike, so files are held out whole, and they are those that text with the same `held_out` and seed holds out.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from onefold.data.prepared import Split
from onefold.data.sources import STDLIB, Document, Skipped, read
from onefold.data.split import content_hash
from onefold.data.text.documents import Corpus, Source

PACKAGES = 8  # those with most files
TABLES = {"encodings"}  # all but one of its files are tables
LINES = 12
MIN_BYTES = 200


@dataclass(frozen=True)
class Passage:
    name: str
    text: str
    package: str
    split: Split


def passages(held_out: float, seed: int) -> Iterator[Passage]:
    """LINES lines at a time, in the order of the files; none that is short."""
    corpus = Corpus.scan((Source(),), held_out, None, seed)
    files: dict[str, list[Document]] = defaultdict(list)
    for document in read(STDLIB, skipped=Skipped()):
        package, inside, _ = document.name.partition("/")
        if inside and package not in TABLES:
            files[package].append(document)
    for package in sorted(sorted(files, key=lambda name: len(files[name]))[-PACKAGES:]):
        for document in files[package]:
            aside = corpus.split.whole(content_hash(document.text, seed))
            lines = [line for line in document.text.splitlines(keepends=True) if line.strip()]
            for start in range(0, len(lines), LINES):
                text = "".join(lines[start : start + LINES])
                if len(text) >= MIN_BYTES:
                    split: Split = "held_out" if aside else "train"
                    yield Passage(f"{document.name}:{start}", text, package, split)
