import gzip

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.data.proteins.structures import is_structure, read_structures

gemmi = pytest.importorskip("gemmi")


def atom(number, name, residue, chain, place, xyz, kind="ATOM", altloc=" "):
    x, y, z = xyz
    return (
        f"{kind:<6}{number:>5} {' ' + name:<4}{altloc}{residue:>3} {chain}{place:>4}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00 10.00           {name[0]}\n"
    )


def chain(residues, name="A", numbers=None, step=3.8):
    """Cα along x, Cβ a little above; glycine has no Cβ. residues: names, None for one that was not seen."""
    text, count = "", 0
    for i, residue in enumerate(residues):
        if residue:
            for what, y in (("N", -1.0), ("CA", 0.0), ("C", -0.5), ("CB", 1.5)):
                if what != "CB" or residue != "GLY":
                    count += 1
                    kind = "HETATM" if residue == "MSE" else "ATOM"
                    number = numbers[i] if numbers else i + 1
                    text += atom(count, what, residue, name, number, (step * i, y, 0.0), kind)
    return text + "TER\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="made.pdb"):
        (tmp_path / name).write_text(text + "END\n")
        return tmp_path / name

    return write


def test_contacts_are_those_of_beta_carbons_below_eight(write):
    (found,) = read_structures(write(chain(["ALA", "GLY", "LYS", "MSE", "VAL"])))
    assert found.name == "made_A"
    assert found.sequence == "AGKMV"
    assert found.places[:, 1].tolist() == [1.5, 0.0, 1.5, 1.5, 1.5]  # Cα of glycine
    i, j = np.indices((5, 5))
    assert (found.contacts() == (abs(i - j) <= 2)).all()  # 7.6 and not 11.4 Å


def test_residues_of_the_sequence_that_were_not_seen_have_no_place(write):
    listed = "SEQRES   1 A    7  MET ALA GLY LYS SER VAL HIS\n"
    (found,) = read_structures(write(listed + chain([None, "ALA", "GLY", None, "SER", "VAL", None])))
    assert found.sequence == "MAGKSVH"
    assert found.known().tolist() == [False, True, True, False, True, True, False]
    assert not found.contacts()[3].any()
    assert not found.contacts()[:, 0].any()


def test_numbers_skipped_at_a_gap_are_unknown_residues(write):
    gap = ["ALA", "LYS", None, None, "VAL", "SER"]
    (found,) = read_structures(write(chain(gap)))
    assert found.sequence == "AKXXVS"
    (found,) = read_structures(write(chain(["ALA", "LYS", "VAL"], numbers=[1, 2, 30])))  # only numbered so
    assert found.sequence == "AKV"


def test_only_proteins_count_and_states_of_simulations_are_residues(write):
    water = atom(90, "O", "HOH", "W", 1, (50, 0, 0), "HETATM")
    text = chain(["ALA", "HSD", "CYX"]) + chain(["VAL", "LEU"], "B") + chain(["DA"], "C") + water
    assert [(s.name, s.sequence) for s in read_structures(write(text))] == [("made_A", "AHC"), ("made_B", "VL")]


def test_mmcif_and_compressed_files_say_the_same(write, tmp_path):
    listed = "SEQRES   1 A    4  MET ALA GLY LYS\n"
    file = write(listed + chain([None, "ALA", "GLY", "LYS"]))
    entry = gemmi.read_structure(str(file))
    entry.setup_entities()
    entry.assign_label_seq_id()
    entry.make_mmcif_document().write_file(str(tmp_path / "other.cif"))
    with gzip.open(tmp_path / "packed.pdb.gz", "wb") as packed:
        packed.write(file.read_bytes())
    (expected,) = read_structures(file)
    for name in ("other.cif", "packed.pdb.gz"):
        assert is_structure(tmp_path / name)
        (found,) = read_structures(tmp_path / name)
        assert found.sequence == expected.sequence == "MAGK"
        np.testing.assert_allclose(found.places, expected.places)


def test_what_is_no_structure_is_named(write):
    assert not is_structure("some.fasta.gz")
    with pytest.raises(UserError, match=r"bad\.cif is no readable structure"):
        read_structures(write("nonsense {", "bad.cif"))
    with pytest.raises(UserError, match=r"made\.pdb holds no protein"):
        read_structures(write(""))
    with pytest.raises(UserError, match="does not exist"):
        read_structures("nowhere.pdb")
