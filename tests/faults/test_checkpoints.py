"""Checkpoints that are damaged, disks that are full: the last good one is found, and nothing is lost."""

import resource
import shutil

import pytest

from onefold.core.errors import UserError
from onefold.training.run import train


@pytest.fixture(scope="module")
def finished(module_run):
    """A run with checkpoints 4, 8 and 12."""
    return train(module_run)


@pytest.fixture
def copy(finished, tmp_path):
    """(the run in a folder that a test may damage, what it was)."""
    shutil.copytree(finished.out, tmp_path / "out")
    return finished.run.but({"out": str(tmp_path / "out")}), finished


def flip(file, where: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(where * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


DAMAGES = {
    "a flipped bit in the weights": lambda c: flip(c / "model.safetensors", 0.7),
    "a flipped bit in the optimizer": lambda c: flip(c / "state" / "optimizer.safetensors", 0.99),
    "a flipped bit in the header": lambda c: flip(c / "model.safetensors", 0.001),
    "a flipped bit in the state": lambda c: flip(c / "state" / "state.json", 0.5),
    "a flipped bit in the manifest": lambda c: flip(c / "manifest.json", 0.5),
    "truncated weights": lambda c: (c / "model.safetensors").write_bytes((c / "model.safetensors").read_bytes()[:-100]),
    "an empty file": lambda c: (c / "artifact.json").write_text(""),
    "a missing file": lambda c: (c / "state" / "state.json").unlink(),
    "no manifest": lambda c: (c / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_last_good_checkpoint_is_found(copy, damage, capsys):
    run, finished = copy
    DAMAGES[damage](run.out / "checkpoints" / "12")
    again = train(run)
    told = capsys.readouterr().err
    assert "going back to the last good checkpoint, 8" in told
    assert "from step 8 of 12" in told
    assert again.step == 12
    weights = "checkpoints/12/model.safetensors"
    assert (again.out / weights).read_bytes() == (finished.out / weights).read_bytes()
    assert [r["loss"] for r in again.log] == [r["loss"] for r in finished.log]
    assert (run.out / "checkpoints" / "damaged-12").is_dir()  # set aside, not thrown away


def test_when_all_are_damaged_nothing_is_overwritten(copy):
    run, _ = copy
    for checkpoint in (run.out / "checkpoints").glob("[0-9]*"):
        flip(checkpoint / "model.safetensors", 0.5)
    with pytest.raises(UserError, match=r"checksum differs.*No checkpoint in .* is whole"):
        train(run)
    assert sorted(f.name for f in (run.out / "checkpoints").glob("[0-9]*")) == ["12", "4", "8"]


def test_half_written_leftovers_are_swept_up(copy):
    run, _ = copy
    leftover = run.out / "checkpoints" / ".16.writing-x1"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert train(run).step == 12
    assert not leftover.exists()


def test_a_cut_off_log_goes_on(copy):
    run, finished = copy
    log = run.out / "log.jsonl"
    log.write_text(log.read_text()[:-30])
    shutil.rmtree(run.out / "checkpoints" / "12")
    again = train(run)
    assert [r["step"] for r in again.log] == list(range(1, 13))
    assert [r["loss"] for r in again.log] == [r["loss"] for r in finished.log]


def test_a_full_disk_is_one_line_and_loses_nothing(copy):
    """A limit on the size of files stands for the disk: the system call fails in the same place."""
    run, _ = copy
    size = (run.out / "checkpoints" / "12" / "state" / "optimizer.safetensors").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, hard))
    try:
        with pytest.raises(UserError, match=r"could not write .*checkpoints/16.*is untouched"):
            train(run.but({"trainer.steps": 20}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    names = {f.name for f in (run.out / "checkpoints").iterdir()}
    assert names == {"4", "8", "12", "best.json"}
    assert train(run.but({"trainer.steps": 20})).step == 20
