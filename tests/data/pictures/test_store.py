import json
import os
import shutil
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image

from onefold.core import files as core_files
from onefold.core.errors import UserError
from onefold.core.files import MANIFEST
from onefold.data import records
from onefold.data.picture_columns import encoded_record, picture_columns
from onefold.data.pictures import filling as picture_filling
from onefold.data.pictures import scan as picture_scan
from onefold.data.pictures.images import ImageData
from onefold.data.pictures.picture import Picture
from onefold.data.pictures.scan import Layout, in_order
from onefold.data.pictures.sources import open_pictures
from onefold.data.pictures.store import append, build, fill, info, sample, verify
from onefold.data.records import Column, Records, RecordsWriter
from tests.data.pictures.makers import class_folders, encoded, idx, noise, smooth


def stored(path):
    """name → (pixels or file, label) of both splits."""
    found = {}
    for split in ("train", "held_out"):
        records = Records(path / split)
        view = records.pictures()
        for row in range(len(records)):
            value = view.gather(np.array([row]))[0] if view.shape else bytes(view.encoded(row))
            found[records["name"][row]] = (value, int(records["label"][row]))
    return found


def test_digits_come_back_as_they_are(tmp_path):
    facts = build("digits", tmp_path / "store")
    found = stored(tmp_path / "store")
    pictures = list(open_pictures("digits"))
    assert len(found) == len(pictures) == facts["train"]["images"] + facts["held_out"]["images"]
    for picture in pictures:
        pixels, label = found[picture.name]
        assert np.array_equal(pixels, picture.pixels)
        assert facts["classes"][label] == picture.label
    assert facts["shape"] == [8, 8, 1]
    assert facts["held_out"]["images"] == pytest.approx(0.1 * len(pictures), abs=1)
    for split in ("train", "held_out"):
        assert sum(facts[split]["per_class"]) == facts[split]["images"]
        assert min(facts[split]["per_class"]) > 0
    assert json.loads((tmp_path / "store" / "data.json").read_text())["facts"] == facts


def test_the_split_depends_on_contents_and_seed_only(tmp_path):
    root = class_folders(tmp_path / "a", each=20)
    names = {}
    for name, source, seed in (("one", "a", 0), ("same", "b", 0), ("other", "a", 1)):
        if source == "b":
            for i, file in enumerate(sorted(root.rglob("*.png"), reverse=True)):
                target = tmp_path / "b" / file.parent.name / f"renamed{i}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        facts = build(tmp_path / source, tmp_path / name, held_out=0.2, split_seed=seed)
        assert facts["held_out"]["images"] == 8
        held_out = Records(tmp_path / name / "held_out")
        names[name] = {held_out.pictures().gather(np.array([row])).tobytes() for row in range(8)}
    assert names["one"] == names["same"] != names["other"]


def test_copies_never_stand_on_both_sides(tmp_path):
    class_folders(tmp_path / "a", ("x",), each=30)
    for file in sorted((tmp_path / "a" / "x").iterdir()):
        (file.parent / f"copy-{file.name}").write_bytes(file.read_bytes())
    build(tmp_path / "a", tmp_path / "store", held_out=0.3)
    found = Records(tmp_path / "store" / "held_out")
    names = {found["name"][row] for row in range(len(found))}
    assert len(names) == 18
    assert {name.replace("copy-", "") for name in names if "copy-" in name} == {n for n in names if "copy-" not in n}


def test_the_sources_own_split_is_kept(tmp_path):
    for name, count in (("train", 5), ("t10k", 3)):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(noise(count, 6, 6, seed=count)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) + 8))
    facts = build(tmp_path, tmp_path / "store")
    assert (facts["split"], facts["train"]["images"], facts["held_out"]["images"]) == ("own", 5, 3)
    assert facts["classes"] == ["8", "9", "10", "11", "12"]  # as numbers, not as words


def test_the_users_size_decides_how_pictures_are_stored(tmp_path):
    class_folders(tmp_path / "a", size=(20, 30, 3), suffix=".jpg")
    files = {p.relative_to(tmp_path / "a").as_posix(): p.read_bytes() for p in (tmp_path / "a").rglob("*.jpg")}
    assert build(tmp_path / "a", tmp_path / "raw")["shape"] == [20, 30, 3]
    for name, (pixels, _) in stored(tmp_path / "raw").items():
        assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "a" / name)))
    facts = build(tmp_path / "a", tmp_path / "encoded", raw_bytes=20 * 30 * 3 - 1)
    assert (facts["storage"], facts["shape"]) == ("encoded", None)
    assert {name: data for name, (data, _) in stored(tmp_path / "encoded").items()} == files
    facts = build(tmp_path / "a", tmp_path / "brought down", side=12)
    assert facts["shape"] == [12, 18, 3]
    facts = build(tmp_path / "a", tmp_path / "as they are", side=64)
    assert facts["shape"] == [20, 30, 3]
    assert build(tmp_path / "a", tmp_path / "large", side=12, raw_bytes=12 * 18 * 3 - 1)["shape"] is None
    facts = build(tmp_path / "a", tmp_path / "small", side=12, raw_bytes=0)
    view = Records(tmp_path / "small" / "train").pictures()
    assert np.unique(view.sizes, axis=0).tolist() == [[12, 18, 3]]
    facts = build(tmp_path / "a", tmp_path / "grey", side=12, channels=1)
    assert facts["shape"] == [12, 18, 1]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_side_neither_cuts_nor_enlarges_pictures_of_many_shapes(tmp_path, suffix):
    sizes = {"low": (20, 40), "high": (50, 25), "tiny": (6, 5), "even": (30, 30)}
    for name, size in sizes.items():
        class_folders(tmp_path / "a", (name,), each=1, size=(*size, 3), suffix=suffix)
    facts = build(tmp_path / "a", tmp_path / "store", side=10, held_out=0)
    assert (facts["storage"], facts["shape"]) == ("encoded", None)
    records = Records(tmp_path / "store" / "train")
    found = {
        str(records["name"][row]).split("/")[0]: size for row, size in enumerate(records.pictures().sizes.tolist())
    }
    assert found == {"low": [10, 20, 3], "high": [20, 10, 3], "tiny": [6, 5, 3], "even": [10, 10, 3]}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pictures_that_come_down_to_one_size_are_raw(tmp_path, suffix):
    for name, size in (("large", (37, 61)), ("small", (74, 122)), ("same", (9, 15))):
        class_folders(tmp_path / "a", (name,), each=2, size=(*size, 3), suffix=suffix)
    assert build(tmp_path / "a", tmp_path / "store", side=9)["shape"] == [9, 15, 3]


def test_the_hash_tells_stores_of_one_source_apart(tmp_path):
    """A resume notices that a store was built anew with other settings; the same ones give the same."""
    class_folders(tmp_path / "a", each=10)
    settings = (
        {},
        {"side": 6},
        {"raw_bytes": 0},
        {"raw_bytes": 0, "side": 6},
        {"channels": 1},
        {"split_seed": 1},
        {"held_out": 0.3},
    )
    hashes = [build(tmp_path / "a", tmp_path / str(i), **chosen)["hash"] for i, chosen in enumerate(settings)]
    assert len(set(hashes)) == len(settings)
    again = build(tmp_path / "a", tmp_path / "again", workers=3, channels=3, skip_bad=True)  # what it comes to anyway
    assert again["hash"] == hashes[0]


def test_pictures_of_many_sizes_stay_as_they_came(tmp_path):
    for i in range(6):
        (tmp_path / "a" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / "x" / f"{i}.png").write_bytes(encoded(noise(8 + i, 9, 3 if i % 2 else 1, seed=i)))
    facts = build(tmp_path / "a", tmp_path / "store", held_out=0)
    view = Records(tmp_path / "store" / "train").pictures()
    assert view.shape is None
    assert view.sizes.tolist() == [[8 + i, 9, 3 if i % 2 else 1] for i in range(6)]
    assert facts["channels"] == 3
    assert build(tmp_path / "a", tmp_path / "side", side=8)["shape"] is None


def test_raw_pixels_too_large_become_lossless_files(tmp_path):
    (tmp_path / "big-images-idx4-ubyte").write_bytes(idx(noise(4, 40, 50, 3)))
    (tmp_path / "big-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    build(tmp_path, tmp_path / "store", raw_bytes=1000, held_out=0)
    view = Records(tmp_path / "store" / "train").pictures()
    sample(tmp_path / "store", tmp_path / "out", 4)
    shown = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "out").iterdir())])
    assert np.array_equal(shown, noise(4, 40, 50, 3))
    assert len(view) == 4


def test_any_number_of_threads_writes_the_same(tmp_path):
    class_folders(tmp_path / "a", each=40)
    for workers in (1, 7):
        build(tmp_path / "a", tmp_path / str(workers), workers, side=6)
    for file in ("train/00000.arrow", "held_out/00000.arrow", "data.json"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "7" / file).read_bytes()


BAD = {
    "text.png": b"hello",
    "half.jpg": encoded(noise(64, 64, 3), "JPEG")[:1500],
    "dot.png": encoded(noise(1, 1, 3)),
    "empty.gif": b"",
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("settings", [{}, {"side": 8}])
def test_a_bad_picture_stops_with_its_name_and_leaves_nothing(tmp_path, name, settings):
    class_folders(tmp_path / "a")
    (tmp_path / "a" / "cat" / name).write_bytes(BAD[name])
    with pytest.raises(UserError, match="skip_bad=true") as error:
        build(tmp_path / "a", tmp_path / "store", **settings)
    assert str(tmp_path / "a" / "cat" / name) in str(error.value)
    assert str(error.value).count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_bad_pictures_are_left_out_and_listed(tmp_path, capsys):
    class_folders(tmp_path / "a")
    for name, data in BAD.items():
        (tmp_path / "a" / "cat" / name).write_bytes(data)
    facts = build(tmp_path / "a", tmp_path / "store", side=8, skip_bad=True)
    assert facts["train"]["images"] + facts["held_out"]["images"] == 12
    assert sorted(name for name in BAD if any(name in line for line in facts["bad"])) == sorted(BAD)
    assert capsys.readouterr().err.count("left out: ") == len(BAD)
    assert len(stored(tmp_path / "store")) == 12


@pytest.mark.parametrize("kind", ["another size", "the only colour"])
def test_a_picture_found_bad_at_the_second_reading_does_not_decide_how_the_others_are_stored(tmp_path, kind, capsys):
    class_folders(tmp_path / "a", size=(9, 7, 1))
    build(tmp_path / "a", tmp_path / "without", held_out=0)
    half = encoded(noise(64, 64, 1) if kind == "another size" else noise(9, 7, 3))
    (tmp_path / "a" / "cat" / "zz.png").write_bytes(half[: len(half) * 2 // 3])  # whose header is whole
    facts = build(tmp_path / "a", tmp_path / "store", skip_bad=True, held_out=0)
    assert (facts["shape"], facts["channels"], len(facts["bad"])) == ([9, 7, 1], 1, 1)
    assert "stored anew" in capsys.readouterr().err
    assert all(
        np.array_equal(pixels, stored(tmp_path / "without")[name][0])
        for name, (pixels, _) in stored(tmp_path / "store").items()
    )
    assert verify(tmp_path / "store") == []


CHANGES = {
    "removed": lambda cat: (cat / "0.png").unlink(),
    "added": lambda cat: (cat / "00.png").write_bytes(encoded(noise(9, 7, 3, seed=9))),
    "added at the end": lambda cat: (cat.parent / "dog" / "z.png").write_bytes(encoded(noise(9, 7, 3, seed=9))),
    "the last removed": lambda cat: (cat.parent / "dog" / "5.png").unlink(),
    "replaced": lambda cat: (cat / "3.png").write_bytes(encoded(noise(9, 7, 3, seed=9))),
    "another class": lambda cat: (cat / "5.png").rename(cat.parent / "dog" / "-.png"),
    "a new class": lambda cat: cat.rename(cat.parent / "cow"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_source_that_changes_while_it_is_read_is_told(tmp_path, what, monkeypatch):
    class_folders(tmp_path / "a")
    write = picture_filling.write

    def late(*arguments):
        CHANGES[what](tmp_path / "a" / "cat")
        return write(*arguments)

    monkeypatch.setattr(picture_filling, "write", late)
    with pytest.raises(UserError, match=r"a has changed while it was read.*: build again"):
        build(tmp_path / "a", tmp_path / "store", skip_bad=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_large_pictures_wait_only_up_to_a_number_of_bytes(monkeypatch):
    """While the first one takes long, others are begun, but not many if they are large."""
    monkeypatch.setattr(picture_scan, "AHEAD_BYTES", 100)
    for size, most in ((1, 33), (30, 3), (1000, 1)):
        begun = []
        pictures = (
            (i, begun.append(i) or Picture(str(i), content=bytes(size))) for i in range(50)
        )  # what is taken from the source
        out = in_order(lambda picture: picture.name, pictures, 8)
        assert next(out) == (0, ANY, "0")
        assert len(begun) == most + 1
        assert [found for _, _, found in out] == [str(i) for i in range(1, 50)]


def test_a_missing_file_of_a_table_is_a_bad_picture(tmp_path):
    (tmp_path / "there.png").write_bytes(encoded(noise(8, 8, 3)))
    (tmp_path / "t.csv").write_text("file,label\nthere.png,a\ngone.png,a\n,b\n")
    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file"):
        build(tmp_path / "t.csv", tmp_path / "store")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "t.csv").open("a") as table:
        table.write("pipe,b\n.,b\nnu\0ll.png,b\n~nobody/x.png,b\n")
    facts = build(tmp_path / "t.csv", tmp_path / "store", skip_bad=True)
    assert len(facts["bad"]) == 6
    assert facts["classes"] == ["a"]


def test_pictures_without_labels(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(noise(8, 8, 3, seed=i)))
    facts = build(tmp_path, tmp_path.with_name("store"), held_out=0)
    assert facts["classes"] == []
    assert [label for _, label in stored(tmp_path.with_name("store")).values()] == [-1] * 3
    class_folders(tmp_path)
    with pytest.raises(UserError, match=r"0\.png has no label, and others have"):
        build(tmp_path, tmp_path.with_name("other"))


def test_a_class_of_one_picture_is_told(tmp_path, capsys):
    class_folders(tmp_path / "a", ("many",), each=5)
    class_folders(tmp_path / "a", ("rare",), each=1)
    build(tmp_path / "a", tmp_path / "store")
    assert "class rare has a single picture" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    build("digits", tmp_path / "store")
    for source, out, settings, told in (
        ("digits", "there", {}, "exists already"),
        ("digits", "new", {"sides": 8}, "did you mean side"),
        ("digits", "new", {"side": 2}, "side"),
        ("digits", "new", {"channels": 2}, "channels"),
        (tmp_path / "empty", "new", {}, "holds no pictures"),
        (tmp_path / "nowhere", "new", {}, "does not exist"),
        ("digits", "new", {"workers": 0}, "workers is a number of threads, not 0"),
        ("digits", "new", {"workers": "two"}, "not 'two'"),
        ("digits", "new", {"source": "a", "out": "b"}, "no setting named source"),
        (tmp_path / "store", "new", {}, "is a store already"),
        ("digits", "store/data.json/in/new", {}, "could not make the folder .*store/data.json/in"),
    ):
        with pytest.raises(UserError, match=told):
            build(source, tmp_path / out, **settings)
        assert not list(tmp_path.glob(".*"))
    for look in (info, verify, lambda path: sample(path, tmp_path / "out")):
        with pytest.raises(UserError, match="no records"):
            look(tmp_path / "there")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "store", "there"]
    with pytest.raises(UserError, match="could not make the folder"):
        sample(tmp_path / "store", tmp_path / "store" / "data.json")


def test_fill_writes_into_a_folder_of_the_caller(tmp_path):
    facts = fill(tmp_path, "digits", Layout(held_out=0.5))
    assert len(Records(tmp_path / "held_out")) == facts["held_out"]["images"]


def test_info_tells_what_there_is(tmp_path):
    facts = build("digits", tmp_path / "store")
    found = info(tmp_path / "store")
    assert found["facts"] == facts
    assert found["records"]["train"]["rows"] == facts["train"]["images"]
    assert found["records"]["train"]["columns"]["image"] == "raw pixels 8 × 8 × 1"
    assert info(tmp_path / "store" / "train")["facts"] == {}


def test_verify_names_shard_page_and_other_files(tmp_path):
    build("digits", tmp_path / "store")
    assert verify(tmp_path / "store") == []
    facts = tmp_path / "store" / "data.json"
    whole = facts.read_text()
    facts.write_text(whole + " ")
    assert "data.json" in verify(tmp_path / "store")[0]
    facts.write_text(whole)
    shard = tmp_path / "store" / "train" / "00000.arrow"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 4
    shard.write_bytes(content)
    [problem] = verify(tmp_path / "store")
    assert "train/00000.arrow is damaged: the checksum of page 0 (rows 0 to 1,616)" in problem
    for file in ("held_out/records.json", "data.json"):
        (tmp_path / "store" / file).write_text("{")
    problems = verify(tmp_path / "store")
    for file, problem in zip(("train/00000.arrow", "held_out/records.json", "data.json"), problems, strict=True):
        assert file in problem
    facts.unlink()
    assert [problem for problem in verify(tmp_path / "store") if problem.endswith("data.json: missing")]


def test_verify_reads_every_file_once(tmp_path, monkeypatch):
    build("digits", tmp_path / "store")
    read, checksums, digest = [], records._checksums, core_files.digest_file
    monkeypatch.setattr(records, "_checksums", lambda file, *_: read.append(file) or checksums(file, *_))
    monkeypatch.setattr(core_files, "digest_file", lambda file: read.append(file) or digest(file))
    assert verify(tmp_path / "store") == []
    assert sorted(read) == sorted(f for f in (tmp_path / "store").rglob("*") if f.is_file() and f.name != MANIFEST)


def test_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    build("digits", "~/store")
    assert verify("~/store") == []
    assert info("~/store")["facts"]["classes"] == list("0123456789")
    assert sample("~/store", "~/look", 1)[0].parent == tmp_path / "look"


def test_samples_are_files_to_look_at(tmp_path):
    build("digits", tmp_path / "store")
    files = sample(tmp_path / "store", tmp_path / "out", 5, split="held_out", seed=3)
    assert len(files) == 5
    records = Records(tmp_path / "store" / "held_out")
    for file in files:
        row, label = file.stem.split("-")
        assert np.array_equal(np.asarray(Image.open(file)), records.pictures().gather(np.array([int(row)]))[0, ..., 0])
        assert records["label"][int(row)] == int(label)
    assert files == sample(tmp_path / "store", tmp_path / "out", 5, split="held_out", seed=3)
    assert files != sample(tmp_path / "store", tmp_path / "out", 5, split="held_out", seed=4)
    with pytest.raises(UserError, match="there are train, held_out"):
        sample(tmp_path / "store", tmp_path / "out", split="test")


def test_samples_of_clips_masks_and_texts(tmp_path):
    columns = (
        picture_columns("clip", (3, 5, 6, 1)) | picture_columns("film", clip=True) | picture_columns("mask", (5, 6))
    )
    clip, mask = noise(3, 5, 6, 1), noise(5, 6)
    with RecordsWriter(tmp_path / "moving", columns) as out:
        frames = [encoded(smooth(5, 6), "JPEG"), encoded(smooth(5, 6))]
        out.add(clip=clip, mask=mask, **encoded_record("film", frames, (5, 6, 3), clip=True))
    names = {file.name: file for file in sample(tmp_path / "moving", tmp_path / "out")}
    assert sorted(names) == [
        "000000-clip.png",
        "000000-film.png",
        "000000-mask.png",
    ]
    sheet = np.asarray(Image.open(names["000000-clip.png"]))  # frames from left to right, in rows
    assert np.array_equal(sheet[:5], np.concatenate((clip[0, ..., 0], clip[1, ..., 0]), axis=1))
    assert np.array_equal(sheet[5:], np.concatenate((clip[2, ..., 0], np.zeros((5, 6), np.uint8)), axis=1))
    assert np.array_equal(np.asarray(Image.open(names["000000-film.png"]))[:, 6:], smooth(5, 6))
    assert np.array_equal(np.asarray(Image.open(names["000000-mask.png"])), mask)
    with RecordsWriter(tmp_path / "text", {"name": Column("text"), "text": Column("text")}) as out:
        out.add(name="a.txt", text="héllo")
    [file] = sample(tmp_path / "text", tmp_path / "texts")
    assert file.read_text(encoding="utf-8") == "héllo"


@pytest.mark.parametrize("content", ["{", "[]", '{"stamps": {}, "facts": {"hash": "a"}}', '{"facts": {}}', b"\xff"])
def test_damaged_facts_are_one_line(tmp_path, content):
    build("digits", tmp_path / "store")
    data = ImageData(path=str(tmp_path / "store"))
    (tmp_path / "store" / "data.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"store/data\.json is damaged"):
        data.prepare(tmp_path)
    with pytest.raises(UserError, match=r"store/data\.json is damaged|store was built by an older Onefold"):
        append("digits", tmp_path / "store")


def test_a_store_that_does_not_fit_its_facts_is_told(tmp_path):
    build("digits", tmp_path / "store", held_out=0.2)
    data, facts = ImageData(path=str(tmp_path / "store")), tmp_path / "store" / "data.json"
    whole = facts.read_text()
    contents = json.loads(whole)
    contents["facts"]["classes"].pop()
    facts.write_text(json.dumps(contents))
    with pytest.raises(UserError, match=r"store/train has the label 9, but data\.json names 9 classes"):
        data.prepare(tmp_path)
    contents["facts"]["classes"] = []
    facts.write_text(json.dumps(contents))
    with pytest.raises(UserError, match=r"store/train has the label \d, but data\.json names 0 classes"):
        data.prepare(tmp_path)
    facts.write_text(whole)
    shutil.copytree(tmp_path / "store" / "held_out", tmp_path / "store" / "train", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"store/train holds 359 pictures, but data\.json says 1,438"):
        data.prepare(tmp_path)
