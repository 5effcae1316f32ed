"""Writing so that a crash loses nothing, and reading so that damage is noticed."""

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.core.progress import say

MANIFEST = "manifest.json"
WRITING, OLD = ".writing-", ".old-"  # what follows a folder's name while it is filled, and while it is replaced
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what file systems say that cannot lock


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
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise disk_error(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _told(path, temporary, error) from error
        raise


@contextmanager
def atomic_folder(path: Path, known: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Fill the yielded temporary folder; on success it gets a manifest of checksums, is synced, and becomes `path`.

    On failure nothing of it is left, and an older folder at `path` is untouched. Where the process is killed between
    the two renames that replace an older folder, `put_back` and `clear_leftovers` bring that back. known: entries of an
    older manifest for files that are carried over, so that they need not be read.
    """
    make_folder(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{WRITING}"))
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        yield temporary
        found = sorted(f for f in temporary.rglob("*") if f.exists())
        files = {f.relative_to(temporary).as_posix(): f for f in found if f.is_file()}
        listed = {
            name: (known or {}).get(name) or {"bytes": f.stat().st_size, "blake2b": digest_file(f)}
            for name, f in files.items()
        }
        (temporary / MANIFEST).write_text(json.dumps(listed, indent=1))
        for f in [*found, temporary / MANIFEST, temporary]:
            _sync(f)
        os.chmod(temporary, 0o755)
        _replace(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _told(path, temporary, error) from error
        raise


def verify_folder(path: Path, besides: Collection[str] = ()) -> list[str]:
    """What is wrong with a folder written by `atomic_folder`, one line each; empty when it is whole.

    besides: names of files that are left out, since somebody else compares them.
    """
    try:
        listed = json.loads((path / MANIFEST).read_text())
        expected = {name: (entry["bytes"], entry["blake2b"]) for name, entry in listed.items()}
    except FileNotFoundError:
        return [f"{path}: no {MANIFEST} (the folder was never finished)"]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return [f"{path / MANIFEST}: unreadable"]
    problems = []
    for name, (size, digest) in expected.items():
        file = path / name
        if name in besides:
            continue
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif file.stat().st_size != size:
            problems.append(f"{file}: {file.stat().st_size} bytes instead of {size} (truncated?)")
        elif digest_file(file) != digest:
            problems.append(f"{file}: checksum differs (damaged)")
    return problems


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Be the only one that writes `path`, where killed processes have left nothing any more.

    Raises UserError when somebody else writes it now.
    """
    make_folder(path.parent)
    busy = f"another process is writing {path} now: wait until it has ended"
    with locked(path.parent / f".{path.name}.lock", busy):
        clear_leftovers(path.parent, path.name)
        yield


@contextmanager
def locked(lock: Path, busy: str) -> Iterator[None]:
    """Hold the file `lock`, which is gone afterwards; the system gives it back however a process ends.

    Raises UserError saying `busy` when another process holds it.
    """
    try:
        handle = _open_locked(lock)
    except BlockingIOError:
        raise UserError(busy) from None
    except OSError as error:
        raise disk_error(lock, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            lock.unlink()
        os.close(handle)


def put_back(path: Path) -> None:
    """Where a process was killed while it replaced `path`, the older folder is there again; else nothing happens."""
    if not path.exists() and any(path.parent.glob(f".{glob.escape(path.name)}{OLD}*")):
        with suppress(UserError), exclusive(path):  # unless somebody is just replacing it, or the disk is read-only
            pass


def clear_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written below `parent`, and put back what they had moved aside.

    name: of the one folder that this is about; None: all.
    """
    stem = "." + ("*" if name is None else glob.escape(name))
    for aside in parent.glob(stem + OLD + "*"):
        for old in aside.iterdir():
            if not (parent / old.name).exists():
                os.replace(old, parent / old.name)
                say(f"{parent / old.name} is put back: a process was killed while it replaced it")
        shutil.rmtree(aside, ignore_errors=True)
    for folder in parent.glob(stem + WRITING + "*"):
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in, unless they are there. Raises UserError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"could not make the folder {folder}: something else has that name") from None
    except OSError as error:
        raise UserError(f"could not make the folder {folder}: {error.strerror}") from error


def disk_error(path: Path, error: OSError) -> UserError:
    return UserError(f"could not write {path}: {error.strerror or error}. What was there before is untouched.")


def _told(path: Path, temporary: Path, error: OSError) -> UserError:
    """An error that names a file elsewhere is no failure to write: it came from reading what is to be written."""
    if isinstance(error.filename, str) and not Path(error.filename).is_relative_to(temporary):
        return UserError(f"{error.filename}: {error.strerror or error}. {path} was not written.")
    return disk_error(path, error)


def _replace(temporary: Path, path: Path) -> None:
    """Let a folder become `path`, where an older one may be; when that fails, all is as it was."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{OLD}"))
    old = aside / path.name
    try:
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        if not temporary.exists():
            os.replace(path, temporary)
        if old.exists():
            os.replace(old, path)
        aside.rmdir()
        raise
    with suppress(OSError):
        if old.exists():
            os.replace(old, temporary)  # a name that is removed, never put back
            shutil.rmtree(temporary, ignore_errors=True)
        aside.rmdir()


def _open_locked(lock: Path) -> int:
    """The handle of a file that is locked and was not removed meanwhile. Raises BlockingIOError."""
    while True:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            _lock(handle)
            if os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        except FileNotFoundError:  # whoever had it has removed it in between
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError as error:
            raise BlockingIOError from error
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:  # there one goes on without
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
