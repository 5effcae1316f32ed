"""Tensors from disk: nothing in a file is ever run, and damage is an error in one line."""

import contextlib
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from onefold.core.errors import UserError
from onefold.interop.tensors import SafetensorFiles, read_index, read_pickled, write_safetensors


class Trap:
    """What a hostile file would do when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("style", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("where", ["top", "inside"])
def test_code_in_a_pickle_is_refused_and_not_run(style, where, tmp_path):
    place = tmp_path / "was_run"
    content = Trap(place) if where == "top" else {"w": torch.ones(2), "x": Trap(place)}
    file = tmp_path / "m.pth"
    if style == "bare":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=style == "zip")
    with pytest.raises(UserError, match="could run code and are not opened"):
        read_pickled(file)
    assert not place.exists()


@pytest.mark.parametrize("style", ["zip", "legacy"])
@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_plain_tensors_are_read(style, wrap, tmp_path):
    weights = {"a": torch.randn(3, 4), "b": torch.randn(5).half()}
    content = {wrap: weights, "step": 3} if wrap else weights
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=style == "zip")
    read = read_pickled(tmp_path / "m.pt")
    assert set(read) == {"a", "b"}
    assert all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize("style", ["zip", "legacy"])
def test_damaged_pickles_are_user_errors(style, tmp_path):
    file = tmp_path / "m.pt"
    torch.save({"a": torch.randn(50)}, file, _use_new_zipfile_serialization=style == "zip")
    good = file.read_bytes()
    for size in (0, 3, 40, len(good) // 2):
        file.write_bytes(good[:size])
        with pytest.raises(UserError, match=str(file)):
            read_pickled(file)
    for at in range(0, len(good), 37):
        damaged = bytearray(good)
        damaged[at] ^= 0x41
        file.write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_pickled(file)  # a flipped bit of a weight cannot be seen here; no other error comes out
    torch.save([torch.ones(1)], file)
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_pickled(file)
    with pytest.raises(UserError, match="is missing"):
        read_pickled(tmp_path / "none.pt")


def test_views_are_written_whole_and_shards_keep_their_bound(tmp_path):
    base = torch.randn(6, 10)
    weights = {"a": base[:3], "b": base[3:], "t": base.t(), "scalar": torch.tensor(2.0)}
    write_safetensors(tmp_path, weights, shard_bytes=250)
    files = read_index(tmp_path / "model.safetensors.index.json")
    assert [file.name for file in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 250 for file in files)
    read = SafetensorFiles(files)
    assert set(read) == set(weights)
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 484


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_an_index_may_not_lead_out_of_its_folder(name, tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/i.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(UserError, match="is not a file of this folder"):
        read_index(tmp_path / "m/i.json")


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": []}', '{"weight_map": {"w": "none.safetensors"}}'])
def test_a_broken_index_is_named(content, tmp_path):
    (tmp_path / "i.json").write_text(content)
    with pytest.raises(UserError, match=r"i\.json"):
        read_index(tmp_path / "i.json")
