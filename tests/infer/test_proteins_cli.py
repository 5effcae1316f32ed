import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from onefold.cli.main import app
from onefold.core.errors import UserError
from onefold.data.proteins.alphabet import AminoAcids
from onefold.infer.model import load
from onefold.infer.proteins import embed_chains
from onefold.infer.text_encoder import TextEncoder
from onefold.interop.loaded import Loaded
from onefold.models.encoder_families import esm1b

CHAIN = "MKVLAGSTRDEFHIKLMNPQ"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = esm1b().but({"width": 16, "depth": 2, "context": 66, "block.mixer.heads": 2, "block.ffn.width": 32})
    model = config.but({"embed.position.context": 68}).build().eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.mixer.qkv.weight)  # attention that is not the same everywhere
    TextEncoder(Loaded(model.config, model, AminoAcids().build())).save(tmp_path / "model")
    (tmp_path / "chains.fasta").write_text(f">one first\n{CHAIN}\n>two\n{CHAIN[::-1]}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["proteins", *arguments], catch_exceptions=True)


def structure(folder):
    """A hairpin: residues i and 19 - i are neighbours."""
    gemmi = pytest.importorskip("gemmi")
    names = gemmi.expand_one_letter_sequence(CHAIN, gemmi.ResidueKind.AA)
    lines = []
    for i, residue in enumerate(names):
        x, y = (3.8 * i, 0.0) if i < 10 else (3.8 * (19 - i), 5.0)
        for name, z in (("CA", 0.0), ("CB", 1.5)):
            lines.append(
                f"ATOM  {len(lines) + 1:>5}  {name:<3} {residue} A{i + 1:>4}    {x:8.3f}{y:8.3f}{z:8.3f}"
                f"  1.00 10.00           C\n"
            )
    (folder / "hairpin.pdb").write_text("".join(lines) + "TER\nEND\n")


def test_a_head_is_fitted_on_structures_and_then_tells_contacts(folder):
    structure(folder)
    told = run("contacts", "model", "chains.fasta")
    assert isinstance(told.exception, UserError)
    assert "onefold proteins fit model" in str(told.exception)
    assert "heads tell contacts" in run("fit", "model", "hairpin.pdb", "--out", "fitted", "--strength", "100").output
    told = run("contacts", "fitted", "chains.fasta", "hairpin.pdb", "--out", "maps")
    assert told.exit_code == 0
    assert "hairpin_A" in told.output
    assert sorted(f.name for f in (folder / "maps").iterdir()) == [
        f"{name}.{kind}" for name in ("hairpin_A", "one", "two") for kind in ("csv", "svg")
    ]
    judged = {line.rsplit(",", 1)[1] for line in (folder / "maps" / "hairpin_A.csv").read_text().splitlines()[1:]}
    assert judged == {"0", "1"}


def test_vectors_are_means_of_residues(folder):
    assert run("embed", "model", "chains.fasta", "--out", "v.npz").exit_code == 0
    found = np.load("v.npz")
    assert found["names"].tolist() == ["one", "two"]
    expected = embed_chains(load("model"), [CHAIN, CHAIN[::-1]])
    np.testing.assert_allclose(found["vectors"], expected.numpy(), atol=1e-5)


def test_alignments_need_no_model(folder):
    assert run("couplings", "chains.fasta").exit_code == 0
    assert (folder / "contacts" / "chains.svg").is_file()


def test_names_that_come_twice_are_told_with_file_and_line(folder):
    (folder / "more.fasta").write_text(f">x\n{CHAIN}\n>one again\n{CHAIN}\n")
    told = run("embed", "model", "chains.fasta", "more.fasta")
    assert "more.fasta:3: a chain named one was there before (chains.fasta:1)" in str(told.exception)
    (folder / "empty.fasta").write_text(">x\n>y\nACD\n")
    assert "empty.fasta:1: x has no residues" in str(run("embed", "model", "empty.fasta").exception)
