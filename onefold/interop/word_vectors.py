"""Word vectors on disk: word2vec's text and binary files, GloVe's text, all of them also as .gz, and our own folder.

    word2vec  text     "COUNT WIDTH", then a line for each word: word, WIDTH numbers, parted by spaces
              binary   the same first line, then for each word: word, space, WIDTH little-endian float32, maybe a newline
    glove     text     the lines without the first one; a word may hold spaces itself (". . .")
    onefold            artifact.json, model.safetensors, words.txt

A file is read from front to back in bounded memory beside the vectors themselves: what its first line claims is
believed as far as the rows go.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast, get_args, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from onefold.core.errors import UserError
from onefold.core.files import atomic_file, atomic_folder, verify_folder
from onefold.core.progress import say
from onefold.interop.artifact import FILE, FORMAT, VERSION, read_card
from onefold.models.word_vectors import WordVectors

Format = Literal["word2vec", "text", "glove", "onefold"]
KIND, WEIGHTS, WORDS = "word_vectors", "model.safetensors", "words.txt"
LONGEST_WORD = 1 << 16  # bytes
WIDEST = 1 << 16
LONGEST_LINE = LONGEST_WORD + 40 * WIDEST
GROWTH = 1.5


def load_vectors(path: "str | Path", limit: int | None = None) -> WordVectors:
    """Open a run, an artifact's folder, or a file of word2vec or GloVe, whichever it is.

    limit: only the first so many words, which are the most frequent ones in most files. A word that comes twice keeps
    its first vector. Raises UserError with the number of the line (in a binary file: of the word) that is wrong.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        vectors = _load_folder(place)
        return vectors if limit is None else WordVectors(vectors.words[:limit], vectors.matrix[:limit])
    if not place.is_file():
        raise UserError(f"{path} does not exist: give a run, or a file of word vectors")
    try:
        with _opened(place) as file:
            return _read(file, place, limit)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{place} could not be read: {error}") from None


def save_vectors(vectors: WordVectors, path: "str | Path", format: Format = "word2vec") -> None:
    """Write word2vec's binary file ("word2vec"), its text, GloVe's text, or our folder. A name in .gz is compressed.

    Numbers of text have nine digits, which give the same float32 back. Words with spaces have no place in word2vec's
    files and are left out, with a line.
    """
    path = Path(path)
    if format not in get_args(Format):
        raise UserError(f"no format named {format!r}; word vectors are written as {', '.join(get_args(Format))}")
    if format == "onefold":
        with atomic_folder(path) as folder:
            write_artifact(folder, vectors)
        return
    rows = [i for i, word in enumerate(vectors.words) if word and (format == "glove" or len(word.split()) == 1)]
    if len(rows) < len(vectors):
        say(f"{len(vectors) - len(rows):,} words that are empty or hold spaces have no place in this format: left out")
    numbers = " ".join(["%.9g"] * vectors.width)
    with atomic_file(path) as temporary, _written(temporary, path.suffix == ".gz") as file:
        if format != "glove":
            file.write(f"{len(rows)} {vectors.width}\n".encode())
        for i in rows:
            row, word = vectors.matrix[i], vectors.words[i].encode()
            data = row.astype("<f4").tobytes() if format == "word2vec" else (numbers % tuple(row.tolist())).encode()
            file.write(word + b" " + data + b"\n")


def write_artifact(folder: Path, vectors: WordVectors, card: Mapping[str, Any] | None = None) -> None:
    """Write an artifact's files into a folder that the caller finishes."""
    save_file({"vectors": np.ascontiguousarray(vectors.matrix)}, folder / WEIGHTS)
    (folder / WORDS).write_text(json.dumps(vectors.words, ensure_ascii=False, indent=0), "utf-8")
    model = {"kind": KIND, "words": len(vectors), "width": vectors.width}
    content = {"format": FORMAT, "version": VERSION, "model": model, "card": dict(card or {})}
    (folder / FILE).write_text(json.dumps(content, indent=1, default=str))


def _load_folder(folder: Path) -> WordVectors:
    """An artifact, or the newest one of a run."""
    if not (folder / FILE).is_file():
        steps = [f for f in (folder / "checkpoints").glob("*") if f.name.isdigit() and (f / FILE).is_file()]
        if not steps:
            raise UserError(f"{folder} holds no word vectors: give a run of word2vec or glove, or a file")
        folder = max(steps, key=lambda f: int(f.name))
    model = read_card(folder)["model"]
    if model.get("kind") != KIND:
        raise UserError(f"{folder} is a {model.get('kind')}, not word vectors")
    if problems := verify_folder(folder):
        raise UserError(problems[0])
    try:
        words = json.loads((folder / WORDS).read_text("utf-8"))
        with safe_open(folder / WEIGHTS, "numpy") as file:
            return WordVectors(words, file.get_tensor("vectors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} is damaged: {error}") from None


def _read(file: IO[bytes], path: Path, limit: int | None) -> WordVectors:
    first = file.readline(LONGEST_LINE)
    header = first.split()
    if len(header) == 2 and all(part.isdigit() for part in header):
        count, width = int(header[0]), int(header[1])
        if not 1 <= width <= WIDEST:
            raise UserError(f"{path}:1: vectors of {width} numbers; up to {WIDEST:,} are read")
        start = file.read1(LONGEST_LINE) if hasattr(file, "read1") else file.read(LONGEST_LINE)  # type: ignore
    raise NotImplementedError
