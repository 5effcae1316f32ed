"""A file of texts in, a file of vectors out, however long: never more than a window of them is in memory."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from onefold.core.errors import UserError
from onefold.core.files import atomic_file
from onefold.core.progress import Progress
from onefold.data.sources import open_text
from onefold.data.tables import TABLES, needed_column, read_table
from onefold.infer.embedder import TextEmbedder

WINDOW = 8192  # texts sorted by length together
COLUMNS = ("text", "sentence", "content", "document", "passage", "query", "question")  # usual names
FORMATS = (".npy", ".parquet", ".jsonl")

Write = Callable[[Sequence[str], np.ndarray], None]


def embed_file(
    model: TextEmbedder, path: Path, out: Path, kind: str | None = None, column: str | None = None
) -> tuple[int, int]:
    """Write the vectors of a file's texts, in their order; returns how many there are, and how many numbers each has.

    path: a text a line, or a table (.csv, .tsv, .jsonl, .parquet), of which `column` is read. out: .npy has Float32
    [N, E], .parquet and .jsonl have columns "text" and "embedding". kind: as in TextEmbedder.embed.
    """
    path, out = Path(path).expanduser(), Path(out).expanduser()
    if out.suffix not in FORMATS:
        raise UserError(f"{out}: vectors are written as {', '.join(FORMATS)}")
    model.encode([""], kind)  # mistakes are told before the file is read
    count = sum(1 for _ in read_texts(path, column))
    if not count:
        raise UserError(f"{path} holds no texts")
    with _writer(out, count, model.config.width) as write, Progress("embedding", count, "texts") as bar:
        texts = read_texts(path, column)
        while some := list(islice(texts, WINDOW)):
            found = np.empty((len(some), model.config.width), np.float32)
            for rows, vectors in model.embed_parts(model.encode(some, kind)):
                found[rows] = vectors
                bar.update(len(rows))
            write(some, found)
    return count, model.config.width


def is_file(text: str) -> bool:
    """Whether this is the name of a file rather than a text."""
    try:
        return Path(text).expanduser().is_file() or Path(text).suffix in TABLES
    except (OSError, ValueError, RuntimeError):  # too long for a name, or no name at all
        return False


def read_texts(path: Path, column: str | None = None) -> Iterator[str]:
    """The texts of a file. Raises UserError naming the line that has none."""
    if not path.is_file():
        raise UserError(f"{path} is no file")
    if not set(path.suffixes) & set(TABLES):
        with open_text(path) as file:
            yield from (line.rstrip("\r\n") for line in file)
        return
    for number, (text,) in read_table(path, partial(_pick, column)):
        if not isinstance(text, str):
            raise UserError(f"{path}:{number}: no text; mend or delete this row")
        yield text


def _pick(column: str | None, known: Sequence[str], where: str) -> tuple[str]:
    return (needed_column(known, where, column, COLUMNS, "say which holds the text with --column NAME"),)


@contextmanager
def _writer(out: Path, count: int, width: int) -> Iterator[Write]:
    """What takes texts and their vectors, a window at a time; a file appears when all is written."""
    opened = {".npy": _npy, ".parquet": _parquet, ".jsonl": _jsonl}[out.suffix]
    with atomic_file(out) as temporary, opened(temporary, count, width) as write:
        yield write


@contextmanager
def _npy(file: Path, count: int, width: int) -> Iterator[Write]:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    with file.open("wb") as opened:
        np.lib.format.write_array_header_1_0(opened, header | {"shape": (count, width)})
        yield lambda texts, vectors: opened.write(vectors.tobytes()) and None


@contextmanager
def _jsonl(file: Path, count: int, width: int) -> Iterator[Write]:
    with file.open("w", encoding="utf-8") as opened:

        def write(texts: Sequence[str], vectors: np.ndarray) -> None:
            for text, vector in zip(texts, vectors):
                numbers = [float(f"{x:.7g}") for x in vector]
                opened.write(json.dumps({"text": text, "embedding": numbers}, ensure_ascii=False) + "\n")

        yield write


@contextmanager
def _parquet(file: Path, count: int, width: int) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"text": pa.string(), "embedding": pa.list_(pa.float32(), width)})
    with pq.ParquetWriter(file, schema) as opened:

        def write(texts: Sequence[str], vectors: np.ndarray) -> None:
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
            opened.write_table(pa.Table.from_arrays([pa.array(texts, pa.string()), flat], schema=schema))

        yield write
