"""A file or a folder is the old one or the new one, whatever happens in between."""

import os
import subprocess
import sys

import pytest

from onefold.core.errors import UserError
from onefold.core.files import (
    WRITING,
    atomic_file,
    atomic_folder,
    atomic_write,
    clear_leftovers,
    exclusive,
    put_back,
    verify_folder,
)


def test_it_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic_write(path, "old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(28, "No space left on device"), UserError, "could not write .*a.txt: No space left.*is untouched"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, error, raised, said):
    path = tmp_path / "a.txt"
    atomic_write(path, b"old")

    def broken_off():
        with atomic_file(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(raised, match=said):
        broken_off()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


CODE = """
import os, sys
from pathlib import Path
from onefold.core.files import atomic_folder

calls, replace = 0, os.replace
def killed(*names):
    global calls
    replace(*names)
    calls += 1
    if calls == int(sys.argv[2]):
        os._exit(9)
os.replace = killed
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_text("new")
"""


@pytest.fixture
def folder(tmp_path):
    """An older folder, with a folder in it."""
    with atomic_folder(tmp_path / "f") as filled:
        (filled / "a").write_text("old")
        (filled / "in").mkdir()
    return tmp_path / "f"


@pytest.mark.parametrize(("calls", "content"), [(1, "old"), (2, "new"), (3, "new")])
def test_a_kill_while_a_folder_is_replaced_loses_neither(folder, calls, content, capsys):
    ended = subprocess.run([sys.executable, "-c", CODE, folder, str(calls)])
    assert ended.returncode == 9
    put_back(folder)
    assert (folder / "a").read_text() == content
    assert verify_folder(folder) == []
    assert ("put back" in capsys.readouterr().err) == (calls == 1)
    clear_leftovers(folder.parent)
    assert (folder / "a").read_text() == content
    assert list(folder.parent.iterdir()) == [folder]


def test_leftovers_are_cleared_but_not_the_only_copy(folder):
    subprocess.run([sys.executable, "-c", CODE, folder, "1"])
    (folder.parent / ".other.writing-1").mkdir()
    clear_leftovers(folder.parent, "f")
    assert sorted(f.name for f in folder.parent.iterdir()) == [".other.writing-1", "f"]
    assert (folder / "a").read_text() == "old"


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_folder_that_cannot_be_replaced_is_put_back(folder, broken, monkeypatch):
    def failing(*names):
        if broken == "fsync":
            if not os.path.samestat(os.fstat(names[0]), folder.parent.stat()):
                return None
        elif WRITING not in str(names[0]) or names[1] != folder:
            return work(*names)
        raise OSError(5, "Input/output error")

    work = getattr(os, broken)
    monkeypatch.setattr(os, broken, failing)
    with pytest.raises(UserError, match=r"could not write .*Input/output error.*is untouched"), atomic_folder(folder):
        pass
    assert (folder / "a").read_text() == "old"
    assert list(folder.parent.iterdir()) == [folder]


def test_everything_is_synced_before_a_folder_is_replaced(tmp_path, monkeypatch):
    synced, sync = set(), os.fsync

    def watched(handle):
        synced.add(os.fstat(handle).st_ino)
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    with atomic_folder(tmp_path / "f") as folder:
        (folder / "in" / "deeper").mkdir(parents=True)
        (folder / "in" / "deeper" / "a").write_text("a")
    assert synced >= {f.stat().st_ino for f in [tmp_path, tmp_path / "f", *(tmp_path / "f").rglob("*")]}


def test_only_failures_to_write_are_told_as_such(tmp_path):
    with (
        pytest.raises(UserError, match=r"gone\.txt: No such file.*f was not written"),
        atomic_folder(tmp_path / "f") as folder,
    ):
        (folder / "a").write_bytes((tmp_path / "gone.txt").read_bytes())
    with pytest.raises(UserError, match=r"could not write .*f: No such file"), atomic_folder(tmp_path / "f") as folder:
        (folder / "in" / "a").write_text("a")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "in" / "a"):
        with pytest.raises(UserError, match=f"could not make the folder {path.parent}"):
            atomic_write(path, "a")
        with pytest.raises(UserError, match=f"could not make the folder {path.parent}"), atomic_folder(path):
            pass
        with pytest.raises(UserError, match=f"could not make the folder {path.parent}"), exclusive(path):
            pass


def test_one_writes_at_a_time(tmp_path):
    code = (
        "import sys; from pathlib import Path; from onefold.core.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, tmp_path / "f"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        with pytest.raises(UserError, match=r"another process is writing .*f now"), exclusive(tmp_path / "f"):
            pass
        with exclusive(tmp_path / "g"):
            pass
        running.kill()
    with exclusive(tmp_path / "f"), pytest.raises(UserError, match="another process"), exclusive(tmp_path / "f"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": {"byte": 1}}', "{", "\xff"])
def test_a_damaged_manifest_is_told(folder, content):
    (folder / "manifest.json").write_bytes(content.encode("latin-1"))
    assert verify_folder(folder) == [f"{folder / 'manifest.json'}: unreadable"]
