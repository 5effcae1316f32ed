"""Word vectors on disk: word2vec's text and binary files, GloVe's text, all of them also as .gz, and our own folder.

    word2vec  text     "COUNT WIDTH", then a line for each word: word, WIDTH numbers, parted by spaces
              binary   that first line, then for each word: it, a space, WIDTH little-endian float32, maybe a newline
    glove     text     the lines without the first one; a word may hold spaces itself (". . .")
    onefold            artifact.json, model.safetensors, words.json

A file is read from front to back in bounded memory beside the vectors themselves: what its first line claims is
believed as far as the rows go.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from onefold.core.errors import UserError
from onefold.core.files import atomic_file, atomic_folder, verify_folder
from onefold.core.progress import say
from onefold.models.words.word_vectors import WordVectors

Format = Literal["word2vec", "text", "glove", "onefold"]
KIND, WEIGHTS, WORDS = "word_vectors", "model.safetensors", "words.json"
LONGEST_WORD = 1 << 16  # bytes
WIDEST = 1 << 16
LONGEST_LINE = LONGEST_WORD + 40 * WIDEST
CHUNK = 1 << 20  # bytes read at once
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
    from onefold.interop.artifact import FILE, FORMAT, VERSION  # with torch, which takes seconds; files need none

    save_file({"vectors": np.ascontiguousarray(vectors.matrix)}, folder / WEIGHTS)
    (folder / WORDS).write_text(json.dumps(vectors.words, ensure_ascii=False, indent=0), "utf-8")
    model = {"kind": KIND, "words": len(vectors), "width": vectors.width}
    content = {"format": FORMAT, "version": VERSION, "model": model, "card": dict(card or {})}
    (folder / FILE).write_text(json.dumps(content, indent=1, default=str))


def _load_folder(folder: Path) -> WordVectors:
    """An artifact, or the newest one of a run."""
    from onefold.interop.artifact import FILE, read_card

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
    first = _line(file, path, 1)
    header = first.split()
    if len(header) != 2 or not all(part.isdigit() for part in header):
        return _read_text(file, first, 1, path, _width(first, path), None, limit)
    count, width = int(header[0]), int(header[1])
    if not 1 <= width <= WIDEST:
        raise UserError(f"{path}:1: vectors of {width} numbers; from 1 to {WIDEST:,} can be read")
    second = file.readline(LONGEST_LINE)
    try:
        _row(second, width, spaces=False)
    except ValueError:
        # What is not text must be binary, unless it is text that is wrong.
        if len(second) <= 4 * width and second.isascii() and second.strip() and second.endswith(b"\n"):
            return _read_text(file, second, 2, path, width, count, limit)
        return _read_binary(file, second, path, width, count, limit)
    return _read_text(file, second, 2, path, width, count, limit)


def _read_text(
    file: IO[bytes], line: bytes, number: int, path: Path, width: int, count: int | None, limit: int | None
) -> WordVectors:
    """From `line`, the one of that number, on. count: how many words there must be; None: as many as there are."""
    rows, found = _Rows(width), 0
    while line:
        if line.strip():
            if count is not None and found == count:
                raise UserError(f"{path}:{number}: one word more than the {count:,} that the first line says")
            try:
                rows.add(*_row(line, width, spaces=count is None))
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}") from None
            found += 1
            if len(rows.words) == limit:
                return rows.finish(path)
        number += 1
        line = _line(file, path, number)
    if count is not None and found < count:
        raise UserError(f"{path}:{number}: ends after {found:,} words; the first line says {count:,} (truncated?)")
    return rows.finish(path)


def _read_binary(file: IO[bytes], buffer: bytes, path: Path, width: int, count: int, limit: int | None) -> WordVectors:
    """From the bytes `buffer` on, which follow the first line."""
    rows, at = _Rows(width), 0
    for number in range(1, count + 1):
        while (space := buffer.find(b" ", at)) < 0 or len(buffer) <= space + 4 * width:
            if (space < 0 and len(buffer) - at > LONGEST_WORD) or not (more := file.read(CHUNK)):
                what = "ends" if space >= 0 or len(buffer) - at <= LONGEST_WORD else "makes no sense"
                raise UserError(f"{path}: {what} in word {number:,} of the {count:,} that its first line says")
            buffer, at = buffer[at:] + more, 0
        try:
            rows.add(buffer[at:space].lstrip(b"\n"), np.frombuffer(buffer, "<f4", width, space + 1))
        except ValueError as error:
            raise UserError(f"{path}: word {number:,}: {error}") from None
        at = space + 1 + 4 * width
        if len(rows.words) == limit:
            return rows.finish(path)
    if buffer[at:].strip(b"\n") or file.read(1):
        raise UserError(f"{path}: goes on after the {count:,} words of {width} numbers that its first line says")
    return rows.finish(path)


def _row(line: bytes, width: int, spaces: bool) -> tuple[bytes, np.ndarray]:
    """(word, vector) of a line.

    spaces: a word may hold some. Errors: ValueError when it is anything else than a word and `width` numbers.
    """
    word, *numbers = line.rstrip().rsplit(b" ", width)
    last = word.rsplit(b" ", 1)
    if len(numbers) != width or (len(last) > 1 and (not spaces or _is_number(last[1]))):
        raise ValueError(f"expected a word and {width} numbers, found {len(line.split())} fields")
    try:
        return word, np.array([float(number) for number in numbers], np.float32)
    except ValueError:
        wrong = next(number for number in numbers if not _is_number(number))
        raise ValueError(f"{wrong[:40].decode(errors='replace')!r} is not a number") from None


def _width(line: bytes, path: Path) -> int:
    """How many numbers end GloVe's first line. All but the first field may be numbers."""
    fields = line.split()
    wide = next((n for n, field in enumerate(reversed(fields)) if not _is_number(field)), len(fields) - 1)
    if not 1 <= wide <= WIDEST:
        raise UserError(
            f"{path}:1: neither word2vec's first line (COUNT WIDTH) nor a word with its vector, as GloVe has"
        )
    return wide


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _line(file: IO[bytes], path: Path, number: int) -> bytes:
    line = file.readline(LONGEST_LINE)
    if len(line) == LONGEST_LINE:
        raise UserError(f"{path}:{number}: longer than {LONGEST_LINE:,} bytes: no line of word vectors")
    return line


class _Rows:
    """Vectors as they come. The matrix grows by reallocation, so that no second one stands beside it."""

    def __init__(self, width: int):
        self.words: dict[str, None] = {}
        self.matrix = np.empty((max(1, CHUNK // (4 * width)), width), np.float32)
        self.again = 0

    def add(self, word: bytes, row: np.ndarray) -> None:
        text = word.decode("utf-8", "replace")
        if not np.isfinite(row).all():
            raise ValueError(f"the vector of {text!r} has numbers that are not finite")
        if text in self.words:
            self.again += 1
            return
        at = len(self.words)
        if at == len(self.matrix):
            self.matrix.resize((int(GROWTH * at) + 1, row.shape[0]), refcheck=False)
        self.matrix[at] = row
        self.words[text] = None

    def finish(self, path: Path) -> WordVectors:
        if not self.words:
            raise UserError(f"{path} holds no words")
        if self.again:
            say(f"{path}: {self.again:,} words came again; their first vectors are kept")
        self.matrix.resize((len(self.words), self.matrix.shape[1]), refcheck=False)
        return WordVectors(list(self.words), self.matrix)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield cast("IO[bytes]", file)


@contextmanager
def _written(path: Path, compressed: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if not compressed:
            yield file
            return
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as inner:  # no time, so that equal vectors are equal files
            yield cast("IO[bytes]", inner)
