import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.core.files import exclusive
from onefold.data.pictures import filling as picture_filling
from onefold.data.pictures import store
from onefold.data.pictures.images import ImageData
from onefold.data.pictures.store import append, build, info, sample, verify
from onefold.data.records import Records
from tests.data.pictures.makers import class_folders, encoded, noise
from tests.data.pictures.test_store import stored


@pytest.fixture
def birds(tmp_path):
    """Forty pictures as a store; its facts."""
    class_folders(tmp_path / "a", each=20)
    return build(tmp_path / "a", tmp_path / "store", held_out=0.2)


def more(root, classes=("cat", "dog"), each=10, seed=1000, **options):
    """Pictures that no other folder has."""
    for i, name in enumerate(classes):
        class_folders(root, (name,), 0)
        for j in range(each):
            pixels = noise(*options.get("size", (9, 7, 3)), seed=seed + 100 * i + j)
            (root / name / f"new{seed}-{j}.png").write_bytes(encoded(pixels))
    return root


def files(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_new_pictures_join_and_the_others_stay_where_they_were(tmp_path, birds):
    rows = {split: len(Records(tmp_path / "store" / split)) for split in ("train", "held_out")}
    old, opened = stored(tmp_path / "store"), Records(tmp_path / "store" / "train")
    facts = append(more(tmp_path / "b"), tmp_path / "store")
    found = stored(tmp_path / "store")
    assert len(found) == 60 == facts["train"]["images"] + facts["held_out"]["images"]
    for split, count in rows.items():
        records = Records(tmp_path / "store" / split)
        assert len(records) == facts[split]["images"] == sum(facts[split]["per_class"])
        assert [records["name"][row] in old for row in range(len(records))].index(False) == count
    for name, (pixels, label) in old.items():
        assert np.array_equal(found[name][0], pixels)
        assert found[name][1] == label
    assert opened["name"][rows["train"] - 1] in old  # who had it open goes on reading
    assert facts["hash"] != birds["hash"]
    assert [source["train"] + source["held_out"] for source in facts["sources"]] == [40, 20]
    assert info(tmp_path / "store")["facts"] == facts
    assert verify(tmp_path / "store") == []
    assert set(json.loads((tmp_path / "store" / "data.json").read_text())["stamps"]) == {
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    }


def test_who_joins_the_held_out_depends_on_the_picture_alone(tmp_path, birds):
    """A fifth of them as in the store, whether they come one by one or together."""
    more(tmp_path / "b", ("cat",), 60)
    build(tmp_path / "a", tmp_path / "other", held_out=0.2)
    append(tmp_path / "b", tmp_path / "store")
    for file in sorted((tmp_path / "b" / "cat").iterdir())[:20]:
        (tmp_path / "c" / "cat").mkdir(parents=True, exist_ok=True)
        append(file.rename(tmp_path / "c" / "cat" / file.name).parents[1], tmp_path / "other")
    append(tmp_path / "b", tmp_path / "other")
    together, alone = (
        {records["name"][row] for records in [Records(tmp_path / name / "held_out")] for row in range(len(records))}
        for name in ("store", "other")
    )
    assert together == alone
    assert 6 <= len(together) - birds["held_out"]["images"] <= 18


def test_old_shards_are_neither_copied_nor_read(tmp_path, birds):
    shard = tmp_path / "store" / "train" / "00000.arrow"
    before = shard.stat()
    (tmp_path / "store" / "README").write_text("whose birds these are")
    (shard.parent / "00001.arrow").write_bytes(b"left by nobody knows whom")
    append(more(tmp_path / "b"), tmp_path / "store")
    assert (tmp_path / "store" / "README").read_text() == "whose birds these are"
    assert (shard.stat().st_ino, shard.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(f.name for f in shard.parent.glob("*.arrow")) == ["00000.arrow", "00001.arrow"]
    append(more(tmp_path / "c", seed=2000), tmp_path / "store")
    assert len(stored(tmp_path / "store")) == 80
    damaged = tmp_path / "store" / "train" / "00001.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"XXXXXXXXX")
    [problem] = verify(tmp_path / "store")
    assert "00001.arrow is damaged" in problem


def test_what_is_there_already_is_left_out(tmp_path, birds, capsys):
    before = files(tmp_path / "store")
    assert append(tmp_path / "a", tmp_path / "store") == birds
    assert "all 40 pictures" in capsys.readouterr().err
    assert files(tmp_path / "store") == before
    more(tmp_path / "a", each=5)
    moved = tmp_path / "a" / "cat" / "0.png"
    moved.rename(tmp_path / "a" / "dog" / "from cat.png")
    facts = append(tmp_path / "a", tmp_path / "store", held_out=0)
    assert facts["train"]["images"] == birds["train"]["images"] + 10
    assert "40 pictures are in the store already, 1 of them under another class" in capsys.readouterr().err
    assert stored(tmp_path / "store")["cat/0.png"][1] == 0


def test_labels_keep_their_numbers_and_new_classes_must_be_wanted(tmp_path, birds):
    before = files(tmp_path / "store")
    more(tmp_path / "b", ("ape", "dog"))
    with pytest.raises(UserError, match=r"has classes that .*store has not: ape\. .*--new-classes"):
        append(tmp_path / "b", tmp_path / "store")
    assert files(tmp_path / "store") == before
    facts = append(tmp_path / "b", tmp_path / "store", new_classes=True)
    assert facts["classes"] == ["cat", "dog", "ape"]
    labels = {name.split("/")[0]: label for name, (_, label) in stored(tmp_path / "store").items()}
    assert labels == {"cat": 0, "dog": 1, "ape": 2}
    assert [sum(facts[s]["per_class"][2] for s in ("train", "held_out"))] == [10]
    dataset = ImageData(path=str(tmp_path / "store"), side=7).prepare(tmp_path / "run")
    assert dataset.classes == ("cat", "dog", "ape")
    assert dataset.size("train") == facts["train"]["images"]
    unlabelled = tmp_path / "c"
    unlabelled.mkdir()
    (unlabelled / "x.png").write_bytes(encoded(noise(9, 7, 3, seed=9)))
    with pytest.raises(UserError, match=r"have labels, those of .* none"):
        append(unlabelled, tmp_path / "store", new_classes=True)


@pytest.mark.parametrize("when", ["in a picture", "at the end"])
def test_an_append_that_breaks_off_loses_nothing(tmp_path, birds, monkeypatch, when):
    before = files(tmp_path / "store")
    more(tmp_path / "b")

    def stop(*arguments):
        raise KeyboardInterrupt

    if when == "in a picture":
        monkeypatch.setattr(picture_filling, "fit", stop)
        monkeypatch.setattr(picture_filling, "decode", stop)
    else:
        monkeypatch.setattr(store, "picture_stamp", stop)  # when all records are written
    with pytest.raises(KeyboardInterrupt):
        append(tmp_path / "b", tmp_path / "store")
    monkeypatch.undo()
    assert files(tmp_path / "store") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "store"]
    append(tmp_path / "b", tmp_path / "store")
    assert len(stored(tmp_path / "store")) == 60


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_an_append_that_is_killed_leaves_a_whole_store(tmp_path, birds, number):
    more(tmp_path / "b", each=300)
    code = "import sys; from onefold.data import store; print(flush=True); store.append(*sys.argv[1:])"
    arguments = [sys.executable, "-c", code, tmp_path / "b", tmp_path / "store"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        running.stdout.readline()
        time.sleep(0.1 * number)
        running.kill()
    assert verify(tmp_path / "store") == []
    assert len(stored(tmp_path / "store")) in (40, 640)
    append(tmp_path / "b", tmp_path / "store")
    assert len(stored(tmp_path / "store")) == 640
    assert not list(tmp_path.glob(".*"))


def test_one_writes_to_a_store_at_a_time(tmp_path, birds, monkeypatch):
    more(tmp_path / "b")
    more(tmp_path / "c", seed=2000)
    write, refused = store.write, []

    def interleaved(*arguments):
        for work, out in ((append, "store"), (append, "link"), (build, "new")):
            with pytest.raises(UserError, match="another process is writing") as error:
                work(tmp_path / "c", tmp_path / out)
            refused.append(str(error.value))
        return write(*arguments)

    (tmp_path / "link").symlink_to(tmp_path / "store")
    (tmp_path / ".store.writing-killed").mkdir()
    with exclusive(tmp_path / "new"):
        monkeypatch.setattr(store, "write", interleaved)
        append(tmp_path / "b", tmp_path / "store")
    monkeypatch.undo()
    assert [line.count("\n") for line in refused] == [0, 0, 0]
    append(tmp_path / "c", tmp_path / "link")
    assert len(stored(tmp_path / "store")) == 80
    assert verify(tmp_path / "store") == []
    assert (tmp_path / "link").is_symlink()
    assert not list(tmp_path.glob(".*"))


def test_a_store_that_a_kill_has_moved_aside_is_put_back(tmp_path, birds):
    """Between the two renames of an append, which killed `half` way leaves behind."""
    before = files(tmp_path / "store")

    def half():
        (tmp_path / ".store.old-1").mkdir()
        (tmp_path / "store").rename(tmp_path / ".store.old-1" / "store")
        (tmp_path / ".store.writing-1").mkdir()

    ways = (
        verify,
        info,
        lambda path: sample(path, tmp_path / "look"),
        lambda path: ImageData(path=str(path), side=7).prepare(tmp_path / "run"),
    )
    for way in ways:
        half()
        way(tmp_path / "store")
        assert files(tmp_path / "store") == before
        assert not list(tmp_path.glob(".*"))
    half()
    with pytest.raises(UserError, match="exists already"):
        build(tmp_path / "a", tmp_path / "store")
    half()
    append(more(tmp_path / "b"), tmp_path / "store")
    assert len(stored(tmp_path / "store")) == 60
    assert not list(tmp_path.glob(".*"))


def test_a_state_before_an_append_is_still_there(tmp_path, birds, capsys):
    """Its rows, classes, mean and hash, whatever was appended later."""
    data = ImageData(path=str(tmp_path / "store"))
    more(tmp_path / "b", ("ape", "dog"), size=(9, 7, 3))
    then = data.but({"side": 7}).prepare(tmp_path)
    facts = append(tmp_path / "b", tmp_path / "store", new_classes=True, held_out=0.5)
    append(more(tmp_path / "c", seed=2000), tmp_path / "store")
    capsys.readouterr()
    for state, classes, counts in (
        (birds["hash"], ("cat", "dog"), [birds[split]["images"] for split in ("train", "held_out")]),
        (facts["hash"], ("cat", "dog", "ape"), [facts[split]["images"] for split in ("train", "held_out")]),
    ):
        dataset = data.but({"side": 7}).prepare(tmp_path, state=state)
        assert (dataset.facts["hash"], dataset.classes) == (state, classes)
        assert [dataset.size("train"), dataset.size("held_out")] == counts
        assert f"going on with the {counts[0]} pictures of then" in capsys.readouterr().err
    before = data.but({"side": 7}).prepare(tmp_path, state=birds["hash"])
    assert (before.mean, before.std) == (then.mean, then.std)
    for split in ("train", "held_out"):
        old, new = (list(dataset.evaluation(split, 8)) for dataset in (then, before))
        assert all(torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in zip(old, new))
        assert len(old) == len(new)
    with then.loader("train", 8, 3) as one, before.loader("train", 8, 3) as other:
        for a, b, _ in zip(one, other, range(12)):
            assert torch.equal(a.images, b.images)
    assert data.but({"side": 7}).prepare(tmp_path, state="0" * 16).size("train") > counts[0]  # never was: that of now


def test_splits_and_shards_that_lie_elsewhere_are_kept(tmp_path, birds):
    target = tmp_path / "store"
    (target / "held_out").rename(tmp_path / "elsewhere")
    (target / "held_out").symlink_to(tmp_path / "elsewhere")
    (target / "train" / "00000.arrow").rename(tmp_path / "shard")
    (target / "train" / "00000.arrow").symlink_to(Path("..", "..", "shard"))
    old = stored(target)
    append(more(tmp_path / "b"), target)
    assert stored(target).keys() > old.keys()
    assert len(stored(target)) == 60
    assert verify(target) == []
    (target / "held_out" / "00000.arrow").unlink()
    before = files(target)
    with pytest.raises(UserError, match=r"held_out/00000\.arrow is missing"):
        append(more(tmp_path / "c", seed=2000), target)
    assert files(target) == before


def test_new_pictures_are_stored_as_those_that_are_there(tmp_path, capsys):
    class_folders(tmp_path / "a", each=4, size=(20, 30, 3))
    build(tmp_path / "a", tmp_path / "raw", side=10, held_out=0)
    build(tmp_path / "a", tmp_path / "files", side=10, raw_bytes=0, held_out=0)
    more(tmp_path / "b", size=(40, 60, 3))
    more(tmp_path / "c", ("cat",), 1, size=(40, 40, 3), seed=2000)
    for name in ("raw", "files"):
        append(tmp_path / "b", tmp_path / name)
        sizes = Records(tmp_path / name / "train").pictures().sizes
        assert np.unique(sizes, axis=0).tolist() == [[10, 15, 3]]
        assert len(sizes) == 28
    with pytest.raises(UserError, match=r"new2000-0\.png comes to 10 × 10 pixels, and the others to 15 × 10"):
        append(tmp_path / "c", tmp_path / "raw")
    facts = append(tmp_path / "c", tmp_path / "files")
    assert facts["train"]["images"] == 29
    before = files(tmp_path / "raw")
    for _ in range(2):
        assert append(tmp_path / "c", tmp_path / "raw", skip_bad=True)["train"]["images"] == 28
        assert "raw is left as it was" in capsys.readouterr().err
    assert files(tmp_path / "raw") == before
    for seed in (3000, 4000):
        facts = append(more(tmp_path / "c", ("dog",), 1, seed=seed, size=(40, 60, 3)), tmp_path / "raw", skip_bad=True)
    assert facts["train"]["images"] == 30
    assert len(facts["bad"]) == 1  # though it came twice


def test_a_split_of_the_sources_own_is_kept_and_nothing_is_taken_from_it(tmp_path, birds):
    for part, seed in (("train", 3000), ("val", 4000)):
        more(tmp_path / "b" / part, each=3, seed=seed)
    facts = append(tmp_path / "b", tmp_path / "store")
    assert facts["sources"][-1] == {"path": str(tmp_path / "b"), "train": 6, "held_out": 6}
    build(tmp_path / "b", tmp_path / "own")
    more(tmp_path / "c", each=30, seed=5000)
    facts = append(tmp_path / "c", tmp_path / "own")
    assert (facts["train"]["images"], facts["held_out"]["images"]) == (66, 6)


def test_colours_that_a_grey_store_loses_are_told(tmp_path, capsys):
    class_folders(tmp_path / "a", each=4, size=(9, 7, 1))
    assert build(tmp_path / "a", tmp_path / "store", held_out=0)["channels"] == 1
    append(more(tmp_path / "b"), tmp_path / "store")
    assert "has colours, but" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, birds):
    more(tmp_path / "b")
    with pytest.raises(UserError, match="is no store: build one first"):
        append(tmp_path / "b", tmp_path / "nowhere")
    for name in ("side", "channels", "raw_bytes", "split_seed"):
        with pytest.raises(UserError, match=f"^{name} is that of the store"):
            append(tmp_path / "b", tmp_path / "store", **{name: 8})
    (tmp_path / "b" / "cat" / "bad.png").write_bytes(b"no")
    with pytest.raises(UserError, match="skip_bad=true"):
        append(tmp_path / "b", tmp_path / "store")
    facts = append(tmp_path / "b", tmp_path / "store", skip_bad=True)
    assert len(facts["bad"]) == 1
    run = ImageData(path=str(tmp_path / "a"), side=7).prepare(tmp_path / "run")
    assert run.size("train")
    [prepared] = (tmp_path / "run").iterdir()
    with pytest.raises(UserError, match="prepared for a run"):
        append(tmp_path / "b", prepared)
    old = tmp_path / "store" / "data.json"
    contents = json.loads(old.read_text())
    del contents["facts"]["sources"]
    old.write_text(json.dumps(contents))
    with pytest.raises(UserError, match="older Onefold"):
        append(tmp_path / "b", tmp_path / "store")
