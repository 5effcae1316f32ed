"""Structures of proteins from PDB and mmCIF files (also .gz): sequences, and which residues touch.

Two residues touch where their Cβ atoms (Cα of glycine) are less than 8 Å apart, as in CASP. Residues of the sequence
that the experiment did not see have no place, and nothing is known of their contacts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onefold.core.errors import UserError, missing_extra

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
TOUCHING = 8.0  # Å
BOND = 4.5  # Å between Cα atoms of neighbours at most; further apart something is missing in between
# Names that simulation programs give to states of residues.
_STATES = {"HSD": "H", "HSE": "H", "HSP": "H", "HID": "H", "HIE": "H", "HIP": "H", "CYX": "C", "CYM": "C"}
_STATES |= {"ASH": "D", "GLH": "E", "LYN": "K", "ARN": "R"}


@dataclass(frozen=True)
class Structure:
    """A chain: its `name`, `sequence`, and the places of its residues in Å, Float[L, 3], NaN where unknown."""

    name: str
    sequence: str
    places: np.ndarray

    def known(self) -> np.ndarray:
        """Bool[L]: which residues have a place."""
        return ~np.isnan(self.places).any(1)

    def contacts(self) -> np.ndarray:
        """Bool[L, L], symmetric; False where a residue has no place."""
        squares = ((self.places[:, None] - self.places) ** 2).sum(-1)
        return squares < TOUCHING**2  # NaN is not below anything


def is_structure(path: str | Path) -> bool:
    """Whether a file's name says that it holds a structure."""
    path = Path(path)
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower() in SUFFIXES


def read_structures(path: str | Path, shortest: int = 2) -> list[Structure]:
    """The protein chains of a file's first model that have `shortest` residues at least.

    Where the file says which residues the protein has, unseen ones are among them; where it does not, residues that
    its numbering skips at a gap in the chain are X. Raises UserError for files that cannot be read or hold no protein.
    """
    gemmi = _gemmi()
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path} does not exist: give a PDB or mmCIF file")
    try:
        entry = gemmi.read_structure(str(file))
    except Exception as error:  # the library raises what it likes for a damaged file
        raise UserError(f"{file} is no readable structure: {error}") from None
    entry.setup_entities()
    entry.assign_label_seq_id()
    found = []
    for chain in entry[0] if len(entry) else ():
        residues = [residue for residue in chain.first_conformer() if _letter(gemmi, residue)]
        name = f"{file.name.removesuffix('.gz').rsplit('.', 1)[0]}_{chain.name}".rstrip("_ ")
        structure = _labelled(gemmi, entry, chain, name) or _numbered(gemmi, residues, name)
        if structure is not None and structure.known().sum() >= shortest:
            found.append(structure)
    if not found:
        raise UserError(f"{file} holds no protein")
    return found


def _labelled(gemmi: Any, entry: Any, chain: Any, name: str) -> Structure | None:
    """By the sequence that the file gives; None where it gives none."""
    polymer = chain.get_polymer()
    entity = entry.get_entity_of(polymer) if len(polymer) else None
    if entity is None or not entity.full_sequence or polymer.check_polymer_type() != gemmi.PolymerType.PeptideL:
        return None
    names = [gemmi.Entity.first_mon(item) for item in entity.full_sequence]
    sequence = "".join(_code(gemmi, item) or "X" for item in names)
    places = np.full((len(sequence), 3), np.nan)
    for residue in polymer.first_conformer():
        if residue.label_seq is not None and 1 <= residue.label_seq <= len(sequence):
            places[residue.label_seq - 1] = _place(residue)
    return None if np.isnan(places).all() else Structure(name, sequence, places)


def _numbered(gemmi: Any, residues: list[Any], name: str) -> Structure | None:
    """By the residues that are there, and the numbers that they have."""
    letters, places, before = [], [], None
    for residue in residues:
        if before is not None:
            skipped = residue.seqid.num - before.seqid.num - 1
            if skipped > 0 and _apart(before, residue):
                letters += "X" * skipped
                places += [np.full(3, np.nan)] * skipped
        letters.append(_letter(gemmi, residue))
        places.append(_place(residue))
        before = residue
    return Structure(name, "".join(letters), np.array(places)) if letters else None


def _letter(gemmi: Any, residue: Any) -> str | None:
    """An amino acid's letter; None for what is none. Molecules without a backbone (free ligands) are none."""
    return _code(gemmi, residue.name) if residue.find_atom("CA", "*") else None


def _code(gemmi: Any, name: str) -> str | None:
    known = gemmi.find_tabulated_residue(name)
    letter = known.one_letter_code.upper() if known.is_amino_acid() else _STATES.get(name)
    return letter if letter is None or letter.isalpha() else "X"


def _place(residue: Any) -> np.ndarray:
    """Of Cβ; of Cα where there is none by nature (glycine); NaN where it was not seen."""
    atom = residue.find_atom("CB", "*") or (residue.find_atom("CA", "*") if residue.name == "GLY" else None)
    return np.array(atom.pos.tolist()) if atom else np.full(3, np.nan)


def _apart(first: Any, second: Any) -> bool:
    a, b = (residue.find_atom("CA", "*") for residue in (first, second))
    return not a or not b or a.pos.dist(b.pos) > BOND


def _gemmi() -> Any:
    try:
        import gemmi
    except ImportError:
        raise missing_extra("gemmi", "proteins", "reading structures") from None
    return gemmi
