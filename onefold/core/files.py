"""Writing so that a crash loses nothing, and reading so that damage is noticed."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError

MANIFEST = "manifest.json"


def digest_file(path: Path) -> str:
    """BLAKE2b-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: readers see the old file or the new one, never a half."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Fill the yielded temporary file; on success it is synced and becomes `path`. On failure nothing of it is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path, known: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Fill the yielded temporary folder; on success it gets a manifest of checksums, is synced, and becomes `path`.

    On failure nothing of it is left, and an older folder at `path` is untouched. known: entries of an older manifest
    for files that are carried over, so that they need not be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.writing-"))
    try:
        yield temporary
        files = sorted(f for f in temporary.rglob("*") if f.is_file())
        names = [f.relative_to(temporary).as_posix() for f in files]
        listed = {
            name: (known or {}).get(name) or {"bytes": f.stat().st_size, "blake2b": digest_file(f)}
            for name, f in zip(names, files)
        }
        (temporary / MANIFEST).write_text(json.dumps(listed, indent=1))
        for f in [*files, temporary / MANIFEST]:
            _sync(f)
        _sync(temporary)
        os.chmod(temporary, 0o755)
        if path.exists():
            doomed = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old-"))
            os.replace(path, doomed / path.name)
            os.replace(temporary, path)
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_error(path, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def verify_folder(path: Path) -> list[str]:
    """What is wrong with a folder written by `atomic_folder`, one line each; empty when it is whole."""
    try:
        listed = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        return [f"{path}: no {MANIFEST} (the folder was never finished)"]
    except (OSError, ValueError):
        return [f"{path / MANIFEST}: unreadable"]
    problems = []
    for name, expected in listed.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif file.stat().st_size != expected["bytes"]:
            problems.append(f"{file}: {file.stat().st_size} bytes instead of {expected['bytes']} (truncated?)")
        elif digest_file(file) != expected["blake2b"]:
            problems.append(f"{file}: checksum differs (damaged)")
    return problems


def clear_leftovers(parent: Path) -> None:
    """Remove what a killed process left half-written below `parent`."""
    for pattern in (".*.writing-*", ".*.old-*"):
        for folder in parent.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def disk_error(path: Path, error: OSError) -> UserError:
    return UserError(f"could not write {path}: {error.strerror or error}. What was there before is untouched.")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
