"""Files of rows that are added one by one: what a crash cut off is dropped, all before it is kept."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.core.files import disk_error, locked, make_folder

Add = Callable[[Mapping[str, Any]], None]


@contextmanager
def growing(path: Path) -> Iterator[Add]:
    """What adds a row to `path`, on disk when it returns. Only one process at a time may.

    Raises UserError when another process adds to it, or it cannot be written.
    """
    make_folder(path.parent)
    with locked(path.parent / f".{path.name}.lock", f"another process writes {path} now: wait until it has ended"):
        _mend(path)
        try:
            file = path.open("a", encoding="utf-8", errors="replace")  # lone surrogates are valid JSON and no text
        except OSError as error:
            raise disk_error(path, error) from error

        def add(row: Mapping[str, Any]) -> None:
            try:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
            except OSError as error:
                raise disk_error(path, error) from error

        with file:
            yield add


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of such a file, none where there is no file. Raises UserError naming the line that is no JSON object."""
    return (row for _, row in placed_rows(path))


def placed_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same, each with the byte that it begins at."""
    if not path.exists():
        return
    try:
        opened = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    with opened as file:
        place = 0
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                if line.endswith(b"\n"):
                    raise UserError(f"{path}:{number} is not valid JSON: mend or delete this line") from None
                return  # cut off
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number} is no JSON object: mend or delete this line")
            yield place, row
            place += len(line)


def valid_text(text: str) -> str:
    """`text` with a question mark for each lone surrogate: JSON may hold those, files and tokenizers may not."""
    return text.encode("utf-8", "replace").decode()


def _mend(path: Path) -> None:
    """Let the file end with a whole row."""
    if not path.exists():
        return
    for _ in read_rows(path):  # mistakes in the middle are told before anything is changed
        pass
    with path.open("rb+") as file:
        lines, end = file.read(), 0
        if lines and not lines.endswith(b"\n"):
            end = lines.rfind(b"\n") + 1
            try:
                json.loads(lines[end:])
            except (ValueError, RecursionError):
                if not lines[end:].startswith(b"{"):
                    raise UserError(f"{path} ends in something that is no JSON object: mend or delete it") from None
                file.truncate(end)
            else:
                file.write(b"\n")
