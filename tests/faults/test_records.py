"""Stores that were cut off, filled a disk, or were damaged anywhere."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.data.picture_columns import encoded_record, picture_columns
from onefold.data.pictures.store import build
from onefold.data.records import Column, Records, RecordsDamaged, RecordsWriter, find_damage
from tests.data.pictures.makers import class_folders, noise

APPEND = """
import sys, numpy as np
from onefold.data.records import Records, RecordsWriter
columns = Records(sys.argv[1]).columns
while True:
    with RecordsWriter(sys.argv[1], columns, append=True, chunk_bytes=20_000) as out:
        for i in range(400):
            out.add(image=np.full((8, 8, 1), i % 256), number=i)
    print("appended", flush=True)
"""


def test_appending_killed_at_any_moment_keeps_every_finished_append(tmp_path):
    columns = picture_columns(shape=(8, 8, 1)) | {"number": Column("int64")}
    with RecordsWriter(tmp_path, columns):
        pass
    appended = 0
    for delay in (0.0, 0.007, 0.02):
        process = subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        appended += 1 + process.communicate()[0].count(b"appended")
        records = Records(tmp_path, verify=True)
        numbers = records.strided("number").gather(np.arange(len(records)))
        assert np.array_equal(numbers, np.arange(len(records)) % 400)
        assert len(records) % 400 == 0
        assert len(records) >= 400 * appended
        appended = len(records) // 400


def test_a_build_that_fails_leaves_nothing_and_no_thread(tmp_path, monkeypatch):
    class_folders(tmp_path / "a", each=20)
    add = RecordsWriter.add
    calls = []

    def full(self, **record):
        calls.append(1)
        if len(calls) > 10:
            raise OSError(28, "No space left on device")
        add(self, **record)

    monkeypatch.setattr(RecordsWriter, "add", full)
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    with pytest.raises(UserError, match="No space left"):
        build(tmp_path / "a", tmp_path / "store", 4)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    deadline = time.monotonic() + 5  # threads end on their own, a moment later
    while (after := (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))) > before:
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.02)


def test_a_flipped_bit_anywhere_is_found_and_never_crashes_a_reader(tmp_path):
    columns = picture_columns() | picture_columns("raw", (4, 4, 1)) | {"label": Column("int32"), "name": Column("text")}
    with RecordsWriter(tmp_path, columns, chunk_bytes=400) as out:
        for i in range(12):
            file = encoded_record("image", [noise(30, seed=i).tobytes()], (4, 4, 1))
            out.add(raw=noise(4, 4, 1, seed=i), label=i, name=str(i), **file)
    shard = tmp_path / "00000.arrow"
    whole = shard.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.integers(8)
        shard.write_bytes(damaged)
        assert len(find_damage(tmp_path)) == 1
        with pytest.raises(RecordsDamaged, match="damaged"):
            Records(tmp_path, verify=True)
        try:
            read_all(Records(tmp_path))
        except (RecordsDamaged, IndexError, ValueError, UnicodeDecodeError):
            continue


def read_all(records):
    """Every value; what is wrong in it does not matter, as long as reading ends."""
    view = records.pictures()
    records.pictures("raw").gather(np.arange(len(records)))
    for row in range(len(records)):
        view.encoded(row)
        records["name"][row]


def test_a_store_is_let_go_with_its_last_view(tmp_path):
    with RecordsWriter(tmp_path, picture_columns(shape=(4, 4, 1))) as out:
        out.add(image=noise(4, 4, 1))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        records = Records(tmp_path)
        view = records.pictures().gather(np.array([0]))
    del records
    assert np.array_equal(view[0], noise(4, 4, 1))
    assert len(os.listdir("/proc/self/fd")) == before
    with open("/proc/self/maps") as maps:
        assert not [line for line in maps if str(tmp_path) in line]
