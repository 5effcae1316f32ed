"""WordNet (Miller 1995): what each sense is told to be, and which of 45 kinds (lexicographer files) it is filed under.

The files are those of Debian's wordnet-base (data.noun, data.verb, data.adj, data.adv; their format: wndb(5WN)).
"""

from collections.abc import Iterator
from pathlib import Path

from onefold.core.errors import UserError

NAME, PLACE = "wordnet", "/usr/share/wordnet"
TITLE = f"{PLACE} (of Debian's wordnet-base)"
PARTS = ("noun", "verb", "adj", "adv")
_NOUNS = """Tops act animal artifact attribute body cognition communication event feeling food group location motive
    object person phenomenon plant possession process quantity relation shape state substance time"""
_VERBS = """body change cognition communication competition consumption contact creation emotion motion perception
    possession social stative weather"""
# In the order of their numbers: lexnames(5WN).
KINDS = (
    *("adj.all", "adj.pert", "adv.all"),
    *(f"noun.{name}" for name in _NOUNS.split()),
    *(f"verb.{name}" for name in _VERBS.split()),
    "adj.ppl",
)


def folder(path: str) -> Path | None:
    """Where WordNet's files lie, if `path` is that folder, or "wordnet" for the usual one; else None."""
    root = Path(PLACE if path == NAME else path).expanduser()
    return root if any((root / f"data.{part}").is_file() for part in PARTS) else None


def read(root: Path) -> Iterator[tuple[str, tuple[str, None, str]]]:
    """(file and line, (gloss, None, kind)) of every sense. Raises UserError for other lines, or none at all."""
    files = [file for part in PARTS if (file := root / f"data.{part}").is_file()]
    if not files:
        raise UserError(
            f"WordNet is not at {PLACE}: install Debian's wordnet-base, or give the folder that holds its data.noun"
        )
    for file in files:
        with file.open(encoding="utf-8", errors="replace") as opened:
            for number, line in enumerate(opened, 1):
                if line.startswith("  ") or not line.strip():  # the licence
                    continue
                head, bar, gloss = line.partition(" | ")
                fields = head.split()
                if not bar or len(fields) < 2 or not fields[1].isdigit() or int(fields[1]) >= len(KINDS):
                    raise UserError(f"{file}:{number}: no sense as WordNet's data files have them")
                yield f"{file}:{number}", (gloss.strip(), None, KINDS[int(fields[1])])
