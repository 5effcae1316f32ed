"""Sequences of symbols and the class of each: what any model that classifies texts can be trained on.

A sequence is a text whose words are its symbols, so that it can be read, looked at and classified as every text is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.data.prepared import SPLITS, folder_name, prepared
from onefold.data.sequences.made import Delay, ListOps
from onefold.data.sequences.read import Pixels, Waves
from onefold.data.split import content_hash
from onefold.data.text.labelled.labels import Example
from onefold.data.text.labelled.text import LabelledTextDataset, write_examples
from onefold.data.text.tokenizers.symbols import of_symbols
from onefold.data.text.tokenizers.tokenizer import Tokenizer


class SequenceData(Config):
    """Long sequences: nested lists ("listops"), delays, pictures pixel by pixel, and sound sample by sample."""

    kind: Literal["sequences"] = "sequences"
    source: Annotated[ListOps | Delay | Pixels | Waves, Slot()] = ListOps()
    context: int = Field(default=2048, ge=1)  # symbols: no sequence may be longer
    held_out: float = Field(default=0.1, ge=0, le=0.5)  # share, where the source has no split of its own
    split_seed: int = Field(default=0, ge=0)

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> LabelledTextDataset:
        """The sequences as tokens, made in a subfolder of `folder` or found there from an earlier time.

        tokenizer: of the model to go on with. keep: as in TextData. Raises UserError that names the file or sequence.
        """
        what = self.to_dict() | ({"tokenizer": tokenizer.digest} if tokenizer else {})
        target = Path(folder) / folder_name("sequences", what)
        new = prepared(target, self.source.stamp(), keep, lambda folder: self._build(folder, tokenizer))
        dataset = LabelledTextDataset(target, self.context)
        if new:
            train, held_out = (f"{dataset.facts[split]['texts']:,}" for split in SPLITS)
            say(f"{train} sequences of {len(dataset.classes)} classes to learn from, {held_out} held out")
        return dataset

    def examples(self) -> Iterator[Example]:
        """All sequences in their splits, one at a time; of equal ones all are in the same split. Raises UserError."""
        bound = int(self.held_out * 2**64)
        for row in self.source.rows():
            if len(row.symbols) > self.context:
                raise UserError(f"{row.name} has {len(row.symbols):,} symbols: set data.context at least so high")
            text = " ".join(row.symbols)
            split = row.split or SPLITS[content_hash(text, self.split_seed) < bound]
            yield Example(row.name, text, "", row.label, split)

    def _build(self, folder: Path, tokenizer: Tokenizer | None) -> tuple[Tokenizer, dict[str, Any]]:
        tokenizer, source = tokenizer or of_symbols(self.source.words()), self.source
        facts = write_examples(
            folder, self.examples(), source.size(), "sequence", source.classes(), tokenizer, self.context
        )
        return tokenizer, facts | {"card": {}}
