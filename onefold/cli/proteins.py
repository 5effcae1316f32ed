"""`onefold proteins VERB …`: what encoders of proteins say of chains, and alignments without a model."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from onefold.cli.common import Device, ModelPath, example, open_model_at
from onefold.core.errors import UserError

app = typer.Typer(
    name="proteins",
    help="Contacts and vectors of protein chains, and contact heads fitted on structures.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Chains = Annotated[
    list[Path], typer.Argument(metavar="FILE…", help="FASTA, PDB or mmCIF files, also .gz", show_default=False)
]
Out = Annotated[Path, typer.Option(help="Folder of the pictures and tables")]


@app.command(
    epilog=example(
        "onefold proteins contacts esm1b_t33_650M_UR50S.pt chains.fasta",
        "onefold proteins contacts runs/esm1b 1ubq.cif --out maps/",
    )
)
def contacts(model: ModelPath, files: Chains, out: Out = Path("contacts"), device: Device = "auto"):
    """Which residues touch: a picture (SVG) and a table (CSV) of each chain; how right, where a structure tells."""
    from onefold.infer.proteins import contact_maps

    encoder = _open_encoder(model, device)
    head = getattr(encoder.network, "regression", None)
    if head is not None and not head.weight.any():
        raise UserError(f"the contact head of {model} is not fitted: onefold proteins fit {model} STRUCTURE… --out NEW")
    judged = []
    for name, sequence, structure in _chains(files):
        (found,) = contact_maps(encoder, [sequence])
        judged += _write(out, name, sequence, found.numpy(), structure)
    _tell(judged)


@app.command(
    epilog=example("onefold proteins couplings family.afa", "onefold proteins couplings family.afa --out maps/")
)
def couplings(
    alignment: Annotated[Path, typer.Argument(help="Aligned FASTA of related chains; the first one is drawn")],
    out: Out = Path("contacts"),
):
    """Which residues touch by an alignment alone: mean-field direct-coupling analysis."""
    from onefold.data.proteins.fasta import read_file
    from onefold.infer.evaluation import couplings as analysis

    chains = list(read_file(alignment))
    scores = analysis.mean_field(analysis.alignment([chain.sequence for chain in chains], str(alignment)))
    _write(out, alignment.name.split(".")[0], chains[0].sequence, scores, None)


@app.command(epilog=example("onefold proteins embed esm1b_t33_650M_UR50S.pt chains.fasta --out vectors.npz"))
def embed(
    model: ModelPath,
    files: Chains,
    out: Annotated[Path, typer.Option(help="An .npz file: names, and a vector for each")] = Path("vectors.npz"),
    device: Device = "auto",
):
    """A vector for each chain: the mean of its residues' features, in windows where a chain is long."""
    import numpy as np

    from onefold.core.files import atomic_file
    from onefold.infer.proteins import TOGETHER, embed_chains

    encoder, names, vectors = _open_encoder(model, device), [], []
    chains = _chains(files)
    while some := list(islice(chains, TOGETHER)):
        names += [name for name, _, _ in some]
        vectors.append(embed_chains(encoder, [sequence for _, sequence, _ in some]).numpy())
    with atomic_file(out) as temporary, temporary.open("wb") as file:
        np.savez(file, names=np.array(names), vectors=np.concatenate(vectors))
    print(f"{len(names):,} vectors of {vectors[0].shape[1]:,} numbers: {out}")


@app.command(epilog=example("onefold proteins fit runs/esm1b structures/*.cif --out runs/esm1b-contacts"))
def fit(
    model: ModelPath,
    structures: Annotated[list[Path], typer.Argument(metavar="STRUCTURE…", help="PDB or mmCIF files, also .gz")],
    out: Annotated[Path, typer.Option(help="Where the model with its contact head goes")],
    strength: Annotated[float, typer.Option(help="Inverse of the L1 penalty", min=1e-6)] = 0.15,
    device: Device = "auto",
):
    """Fit the contact head of an encoder on a few structures (ESM took 20)."""
    from onefold.data.proteins.structures import read_structures
    from onefold.training.proteins.contacts import Example, fit_contacts

    encoder = _open_encoder(model, device)
    chains = [chain for file in structures for chain in read_structures(file)]
    heads = fit_contacts(encoder, (Example(c.sequence, c.contacts(), c.known()) for c in chains), strength)
    if not heads:
        raise UserError("no head of this model tells contacts: fit on more structures, or with a higher --strength")
    encoder.save(out)
    print(f"{heads} heads tell contacts, by {len(chains)} chains: {out}")


def _open_encoder(path: str, device: str) -> Any:
    from onefold.infer.text_encoder import TextEncoder

    loaded = open_model_at(path, device)
    if not isinstance(loaded, TextEncoder):
        raise UserError(f"{path} does not read proteins: that takes an encoder such as ESM-1b")
    return loaded


def _chains(files: list[Path]) -> Iterator[tuple[str, str, Any]]:
    """(name, sequence, structure or None) of all chains. Errors: UserError for a name that comes twice."""
    from onefold.data.proteins.fasta import read_file
    from onefold.data.proteins.structures import is_structure, read_structures

    seen: dict[str, str] = {}
    for file in files:
        if is_structure(file):
            found = [(chain.name, chain.sequence, chain, f"{file}") for chain in read_structures(file)]
        else:
            found = ((_short(c.name), c.sequence, None, f"{file}:{c.line}") for c in read_file(file))
        for name, sequence, structure, where in found:
            if not sequence:
                raise UserError(f"{where}: {name} has no residues")
            if name in seen:
                raise UserError(
                    f"{where}: a chain named {name} was there before ({seen[name]}): give each its own name"
                )
            seen[name] = where
            yield name, sequence, structure


def _short(name: str) -> str:
    """The first word of a chain's name, as a name of a file."""
    word = (name.split() or ["chain"])[0]
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in word).lstrip(".") or "chain"


def _write(folder: Path, name: str, sequence: str, scores: Any, structure: Any) -> list[tuple[str, dict[str, Any]]]:
    """Picture and table of a chain; what its structure says of them, if it has one."""
    from onefold.core.files import atomic_write
    from onefold.infer.evaluation.contact_precision import precisions
    from onefold.study.pages.charts import standalone
    from onefold.study.pages.contacts import contact_chart, contact_table

    known = None if structure is None else structure.known()
    touch = None if structure is None else structure.contacts()
    atomic_write(folder / f"{name}.svg", standalone(contact_chart(scores, touch, known, name)))
    atomic_write(folder / f"{name}.csv", contact_table(scores, sequence, touch, known))
    print(f"{name}: {len(sequence):,} residues, {folder / name}.svg and .csv")
    return [] if structure is None else [(name, precisions(scores, touch, known))]


def _tell(judged: list[tuple[str, dict[str, Any]]]) -> None:
    """Precision of each chain that has a structure, and the mean."""
    from rich.console import Console
    from rich.table import Table

    from onefold.infer.evaluation.contact_precision import mean_precisions

    if not judged:
        return
    if len(judged) > 1:
        judged = [*judged, ("mean", mean_precisions(found for _, found in judged))]
    labels = list(judged[0][1]["long"])
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for distance in judged[0][1]:
        for label in labels:
            table.add_column(f"{distance} {label}", justify="right")
    for name, found in judged:
        table.add_row(name, *(f"{found[distance][label]:.1%}" for distance in found for label in labels))
    Console().print(table)
