import gzip
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onefold.core.errors import UserError
from onefold.data.own_splits import own_splits
from onefold.data.pictures.sources import open_pictures, picture_stamp
from tests.data.pictures.makers import class_folders, encoded, idx, noise


def found(path, **options):
    source = open_pictures(path, **options)
    pictures = list(source)
    assert [p.name for p in pictures] == [p.name for p in source], "another reading gives something else"
    return pictures


def test_the_embedded_digits_are_the_published_ones():
    """Counts and sum of the grey values as the data set's own description gives them (0 to 16)."""
    pictures = found("digits")
    values = np.stack([p.pixels for p in pictures])
    assert values.shape == (1797, 8, 8, 1)
    assert np.round(values.astype(int) * 16 / 255).sum() == 561718
    assert np.bincount([int(p.label) for p in pictures]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert picture_stamp("digits") == picture_stamp("digits") is not None


def test_folders_are_classes(tmp_path):
    class_folders(tmp_path, ("b", "a"), each=2)
    (tmp_path / "a" / "more").mkdir()
    (tmp_path / "a" / "more" / "deep.JPG").write_bytes(encoded(noise(8, 8, 3), "JPEG"))
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "loose.png").write_bytes(encoded(noise(8, 8, 3)))
    assert [(p.name, p.label, p.split) for p in found(tmp_path)] == [
        ("loose.png", None, None),
        ("a/0.png", "a", None),
        ("a/1.png", "a", None),
        ("a/more/deep.JPG", "a", None),
        ("b/0.png", "b", None),
        ("b/1.png", "b", None),
    ]
    assert found(tmp_path)[1].data == (tmp_path / "a" / "0.png").read_bytes()


def test_folders_of_splits_are_taken_as_such(tmp_path, capsys):
    for split in ("train", "val", "test"):
        class_folders(tmp_path / split, ("a", "b"), each=1)
    assert [(p.name, p.label, p.split) for p in found(tmp_path)] == [
        ("train/a/0.png", "a", "train"),
        ("train/b/0.png", "b", "train"),
        ("val/a/0.png", "a", "held_out"),
        ("val/b/0.png", "b", "held_out"),
    ]
    assert "test left out" in capsys.readouterr().err


def test_stray_folders_beside_splits_do_not_make_classes_of_them(tmp_path):
    for split in ("train", "val"):
        class_folders(tmp_path / split, ("a", "b"), each=1)
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "deep" / "README.md").write_text("no picture")
    class_folders(tmp_path / "__MACOSX" / "train", ("a",), each=1)
    class_folders(tmp_path / ".cache", ("a",), each=1)
    assert {(p.name, p.label, p.split) for p in found(tmp_path)} == {
        ("train/a/0.png", "a", "train"),
        ("train/b/0.png", "b", "train"),
        ("val/a/0.png", "a", "held_out"),
        ("val/b/0.png", "b", "held_out"),
    }
    class_folders(tmp_path / "docs", ("figures",), each=1)
    with pytest.raises(UserError, match=r"pictures in docs/ beside train/ and val/: move docs away"):
        open_pictures(tmp_path)


def test_what_a_mac_leaves_in_archives_is_no_class(tmp_path):
    class_folders(tmp_path, ("a", "b", "__MACOSX"), each=1)
    assert {p.label for p in found(tmp_path)} == {"a", "b"}


def test_which_names_are_splits():
    assert own_splits(["Train", "test"], "x") == {"Train": "train", "test": "held_out"}
    assert own_splits(["train"], "x") == {"train": None}
    assert own_splits(["train", "test", "bus"], "x") == {}  # vehicles
    assert own_splits(["val", "test"], "x") == {}
    assert own_splits([], "x") == {}


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_bring_their_split(tmp_path, packed):
    values, labels = noise(5, 6, 7), np.arange(5, dtype=np.uint8)
    for name, part in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        for kind, data in (("images-idx3", values), ("labels-idx1", labels)):
            content = idx(data[part])
            file = tmp_path / "raw" / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(gzip.compress(content) if packed else content)
    pictures = sorted(found(tmp_path), key=lambda p: p.label)
    assert np.array_equal(np.stack([p.pixels for p in pictures])[..., 0], values)
    assert [p.split for p in pictures] == ["train"] * 3 + ["held_out"] * 2
    alone = found(next(tmp_path.glob("raw/train-images*")))
    assert [(p.label, p.split) for p in alone] == [("0", None), ("1", None), ("2", None)]


@pytest.mark.parametrize("damage", ["truncated", "bad gzip", "fewer labels", "no labels", "other type", "huge"])
def test_damaged_idx_files_are_named(tmp_path, damage):
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz"
    content = idx(noise(4, 8, 8))
    if damage == "truncated":
        content = content[:-1]
    elif damage == "other type":
        content = content[:2] + b"\x0d" + content[3:]
    elif damage == "huge":
        content = content[:8] + struct.pack(">II", 1 << 31, 1 << 31)
    images.write_bytes(gzip.compress(content)[: -20 if damage == "bad gzip" else None])
    if damage != "no labels":
        labels.write_bytes(gzip.compress(idx(np.zeros(3 if damage == "fewer labels" else 4, np.uint8))))
    with pytest.raises(UserError, match="train-images-idx3"):
        found(tmp_path)


def test_several_idx_sets_are_told_apart(tmp_path):
    for name in ("letters", "digits"):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(noise(2, 8, 8)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    with pytest.raises(UserError, match="name the images of one"):
        found(tmp_path)
    assert len(found(tmp_path / "letters-images-idx3-ubyte")) == 2


def rows(folder):
    """Three pictures as files, and what a table says of them."""
    files = [encoded(noise(8, 8, 3, seed=i)) for i in range(3)]
    for i, data in enumerate(files):
        (folder / f"{i}.png").write_bytes(data)
    return files, [f"{i}.png" for i in range(3)], ["x", "y", "x"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_name_files(tmp_path, kind):
    files, names, labels = rows(tmp_path)
    table = tmp_path / f"table.{kind}"
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        lines = [mark.join(("id", "file_name", "species"))] + [mark.join(r) for r in zip("123", names, labels)]
        table.write_text("\ufeff" + "\n".join(lines))
    elif kind == "jsonl":
        table.write_text("".join(json.dumps({"file_name": n, "species": s}) + "\n\n" for n, s in zip(names, labels)))
    else:
        pq.write_table(pa.table({"file_name": names, "species": labels}), table)
    assert [(p.name, p.data, p.label) for p in found(table, label="species")] == list(zip(names, files, labels))
    assert [p.label for p in found(table)] == [None] * 3
    with pytest.raises(UserError, match="no 'colour'"):
        found(table, label="colour")


def hub_schema(**features):
    return {"huggingface": json.dumps({"info": {"features": features}})}


def test_parquet_of_the_hub(tmp_path):
    files, names, _ = rows(tmp_path)
    values = [{"bytes": d, "path": n} for d, n in zip(files[:2], names)] + [{"bytes": None, "path": names[2]}]
    schema = hub_schema(label={"_type": "ClassLabel", "names": ["cat", "dog"]}, image={"_type": "Image"})
    table = pa.table({"image": values, "label": [1, 0, None]}).replace_schema_metadata(schema)
    for split in ("train", "test"):
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / "a-figure.png").write_bytes(files[0])
        pq.write_table(table.slice(0, 2), tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    assert [(p.data, p.label, p.split) for p in found(tmp_path / "hub")] == [
        (files[0], "dog", "held_out"),
        (files[1], "cat", "held_out"),
        (files[0], "dog", "train"),
        (files[1], "cat", "train"),
    ]
    assert open_pictures(tmp_path / "hub").classes == ("cat", "dog")
    pq.write_table(table, tmp_path / "all.parquet")
    assert [(p.data, p.label) for p in found(tmp_path / "all.parquet")][2] == (files[2], None)


@pytest.mark.parametrize("label", [2, -1])
def test_labels_out_of_range_are_told_with_their_row(tmp_path, label):
    schema = hub_schema(label={"_type": "ClassLabel", "names": ["cat", "dog"]})
    table = pa.table({"image": [b"x", b"y"], "label": [0, label]}).replace_schema_metadata(schema)
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match=rf"t\.parquet:2: label {label} is out of range"):
        found(tmp_path / "t.parquet")


def test_numbers_and_gaps_are_labels(tmp_path):
    values = pa.array([1.0, None, 12.0])
    pq.write_table(pa.table({"image": [b"x", b"y", b"z"], "label": values}), tmp_path / "t.parquet")
    assert [p.label for p in found(tmp_path / "t.parquet")] == ["1", None, "12"]


def test_saved_datasets_with_their_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    files, _, _ = rows(tmp_path)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    parts = {
        split: datasets.Dataset.from_dict(
            {"img": [{"bytes": d, "path": None} for d in some], "label": labels}, features
        )
        for split, some, labels in (("train", files[:2], [1, 0]), ("test", files[2:], [1]))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    expected = [(files[0], "yes"), (files[1], "no"), (files[2], "yes")]
    assert [(p.data, p.label) for p in found(tmp_path / "both")] == expected
    assert [p.split for p in found(tmp_path / "both")] == ["train", "train", "held_out"]
    assert [(p.data, p.label, p.split) for p in found(tmp_path / "one")] == [(*e, None) for e in expected[:2]]
    assert open_pictures(tmp_path / "one").classes == ("no", "yes")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", b"a,b\n1,2\n", "say which column holds the picture"),
        ("t.csv", b"", "no columns"),
        ("t.csv", b'image,label\n"' + b"x" * 200_000, "not valid CSV"),
        ("t.jsonl", b'{"image": "x.png"}\n{"image"\n', r"t\.jsonl:2: not valid JSON"),
        ("t.jsonl", b"[1]\n", r"t\.jsonl:1: no object"),
        ("t.parquet", b"PAR1 not really", "not a readable Parquet file"),
        ("t.tar", b"x", "is no folder, table"),
        ("digits.csv", zlib.compress(b"x"), "has"),
    ],
)
def test_broken_tables_are_told(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        found(tmp_path / name)
    assert name in str(error.value)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_pictures(tmp_path / "nowhere")
    assert picture_stamp(tmp_path / "nowhere") is None
    assert found(tmp_path) == []


def test_the_stamp_notices_a_change(tmp_path):
    class_folders(tmp_path)
    before = picture_stamp(tmp_path)
    assert picture_stamp(tmp_path) == before
    (tmp_path / "cat" / "0.png").unlink()
    assert picture_stamp(tmp_path) != before
