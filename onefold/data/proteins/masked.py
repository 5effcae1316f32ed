"""Proteins of which some residues are hidden, as training data for encoders: masked text whose letters are amino acids.

Of a chain that is longer than a row an epoch sees one part, at another random place each time; evaluations read all of
it, in windows that overlap (Rives et al. 2021, appendix).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from onefold.core.batch import TokenBatch
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.data.draws import Draws
from onefold.data.loader import Evaluation
from onefold.data.prepared import Split
from onefold.data.proteins.alphabet import AminoAcids
from onefold.data.proteins.potts import SYNTHETIC, write_families
from onefold.data.text.dataset import Dataset
from onefold.data.text.documents import LoadTokenizer
from onefold.data.text.masked import MaskedDataset, MaskedTextData
from onefold.data.text.plan import Plan, plan_evaluation
from onefold.data.text.tokenizers.tokenizer import Tokenizer

CROP = 3  # stream of draws; masking has 1 and 2


class ProteinData(MaskedTextData):
    """Files of FASTA (also .gz, or a folder of them), or "synthetic" families, whose hidden residues are predicted."""

    kind: Literal["proteins"] = "proteins"  # pyright: ignore
    context: int = Field(default=1024, ge=3)  # with <cls> and <eos>
    tokenizer: Annotated[AminoAcids | LoadTokenizer, Slot()] = AminoAcids()  # pyright: ignore
    next_sentence: Literal[False] = False

    def prepare(self, folder: Path, tokenizer: Tokenizer | None = None, keep: bool = False) -> Dataset:
        """As that of all texts."""
        if any(source.path == SYNTHETIC for source in self.sources):
            file = str(write_families(Path(folder) / "synthetic.fasta"))
            made = [s.model_copy(update={"path": file}) if s.path == SYNTHETIC else s for s in self.sources]
            return self.model_copy(update={"sources": tuple(made)}).prepare(folder, tokenizer, keep)
        return super().prepare(folder, tokenizer, keep)

    def _open(self, folder: Path, shares: Sequence[float] | None) -> "ProteinDataset":
        return ProteinDataset(folder, self.context, shares, self.masking)


class ProteinDataset(MaskedDataset):
    """What `prepare` returns. Where a part of a long chain lies is a function of seed, epoch and its number there."""

    def plan(self, split: Split, rows: int, seed: int, epoch: int) -> Plan:
        planned = super().plan(split, rows, seed, epoch)  # of the beginnings of chains
        pieces = planned.pieces
        room = super()._lengths(split)[pieces.document] - pieces.length
        drawn = Draws(seed, epoch, np.arange(len(pieces))).stream(CROP).uniform(1)[:, 0]
        offset = np.minimum((drawn * (room + 1)).astype(np.int64), room)  # rounding may reach the end
        return replace(planned, pieces=replace(pieces, offset=offset))

    def evaluation(self, split: Split, rows: int, stride: int | None = None) -> Evaluation[Plan, TokenBatch]:
        """Every residue of the split once, in windows that overlap by half."""
        self._check(split)
        stride = stride or max(1, (self.length - self.frame) // 2)
        planned = plan_evaluation(super()._lengths(split), self.length, rows, stride, self.frame)
        return Evaluation(planned, self._gather(split), len(planned.first) - 1, rows)

    def fit(self, model: Config, grow: bool) -> Config:
        """The model's config. Raises UserError when its token dropout expects other masks than these."""
        drops = getattr(getattr(model, "embed", None), "token_dropout", None)
        if drops is not None and drops.mask != self.tokenizer.mask:
            raise UserError(f"model.embed.token_dropout.mask is {drops.mask}, the mask token is {self.tokenizer.mask}")
        hidden = self.masking.rate * self.masking.masked
        if drops is not None and not grow and abs(drops.rate - hidden) > 1e-6:
            raise UserError(
                f"model.embed.token_dropout.rate is {drops.rate:g}, but data.masking hides {hidden:g} of all tokens "
                "(rate · masked): make them equal"
            )
        return super().fit(model, grow)

    def _lengths(self, split: Split) -> np.ndarray:
        return np.minimum(super()._lengths(split), self.length - self.frame)
