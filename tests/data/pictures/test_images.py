import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.ahead import NAME, Slots
from onefold.data.pictures.batches import in_channels
from onefold.data.pictures.files import with_channels
from onefold.data.pictures.images import ImageData
from onefold.data.pictures.reader import PictureReader
from onefold.data.pictures.store import build, is_store
from onefold.data.pictures.transforms.frame import scaled
from onefold.models.vision.resnet import ResNetConfig
from tests.data.pictures.makers import class_folders, idx
from tests.data.pictures.transforms.helpers import pictures

EVERYTHING = (
    {"kind": "pad_crop", "pad": 1},
    {"kind": "flip"},
    {"kind": "color_jitter"},
    {"kind": "rand_augment"},
    {"kind": "random_erasing"},
    {"kind": "mixup_or_cutmix"},
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Where what is prepared goes, once for all tests."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Forty pictures of three classes and of all sizes: most JPEG, some PNG, some grey."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(40):
        height, width = random.integers(40, 120, 2)
        picture = pictures(1, height, width, 1 if i % 8 == 0 else 3, seed=i)[0]
        image = Image.fromarray(picture.squeeze(-1) if picture.shape[2] == 1 else picture)
        folder = root / ("cat", "dog", "eel")[i % 3]
        folder.mkdir(exist_ok=True)
        image.save(folder / (f"{i:02}.png" if i % 5 == 0 else f"{i:02}.jpg"), quality=95)
    return root


def take(source, n):
    return [next(source) for _ in range(n)]


def records(dataset, split="train"):
    return dataset._records[split]


def test_the_digits_need_no_setting(made):
    dataset = ImageData().prepare(made)
    assert dataset.classes == tuple("0123456789")
    assert (dataset.processor.side, dataset.processor.channels) == (8, 1)
    assert dataset.size("train") + dataset.size("held_out") == 1797
    stored = records(dataset)
    raw, labels = stored.pictures().gather(np.arange(len(stored))), stored["label"].gather(np.arange(len(stored)))
    assert dataset.mean == pytest.approx([raw.mean() / 255])
    assert dataset.std == pytest.approx([raw.std() / 255])
    with dataset.loader("train", 50, seed=3) as loader:
        seen = []
        while loader.state()["epoch"] == 0:
            batch = next(loader)
            rows = batch.rows_of.numpy()
            seen += rows.tolist()
            assert torch.equal(batch.images[:, 0], torch.from_numpy(raw[rows][..., 0]))
            assert torch.equal(batch.targets.argmax(1), torch.from_numpy(labels[rows]).long())
            assert (batch.targets.sum(1) == 1).all()
    count = len(stored)
    assert sorted(seen[:count]) == list(range(count))
    assert seen[count:] == seen[: len(seen) - count]  # filled up from the beginning


@pytest.mark.parametrize("order", ["random", "pages", "sequential"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
def test_resuming_with_another_number_of_processes_goes_on_exactly(made, before, after, order):
    dataset = ImageData(augment=EVERYTHING, order=order).prepare(made)

    def loaders(world, state=None):
        return [dataset.loader("train", 8, 7, rank, world, state) for rank in range(world)]

    def joined(parts):
        return [torch.cat([getattr(p, name) for p in parts]) for name in ("images", "targets", "rows_of")]

    start = {"epoch": 2, "seen": 8 * (dataset.size("train") // 8 - 3)}  # so that a new epoch begins meanwhile
    (whole,) = loaders(1, start)
    expected = [joined([batch]) for batch in take(whole, 9)]
    whole.close()
    sources = loaders(before, start)
    found = [joined([next(s) for s in sources]) for _ in range(4)]
    states = [s.state() for s in sources]
    assert all(state == states[0] for state in states)
    for source in sources:
        source.close()
    sources = loaders(after, states[0])
    found += [joined([next(s) for s in sources]) for _ in range(5)]
    for source in sources:
        source.close()
    for a, b in zip(expected, found):
        assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_epochs_and_seeds_change_pictures_differently(made):
    dataset = ImageData(augment=({"kind": "random_erasing", "probability": 1.0},), order="sequential").prepare(made)
    found = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        with dataset.loader("train", 16, seed, state={"epoch": epoch, "seen": 0}) as loader:
            found.append(next(loader).images.clone())
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_pictures_of_all_sizes_are_read_as_pillow_would(made, photos):
    dataset = ImageData(path=str(photos), side=32, share=0.8, held_out=0).prepare(made)
    assert dataset.facts["storage"] == "encoded"
    assert (dataset.classes, dataset.processor.channels) == (("cat", "dog", "eel"), 3)
    assert dataset.processor.resize == 40
    names = records(dataset)["name"]
    seen = []
    for batch in dataset.evaluation("train", 16):
        assert batch.images.shape[1:] == (3, 32, 32)
        for image, target, row in zip(batch.images, batch.targets, batch.rows_of.tolist()):
            file = photos / str(names[row])
            seen.append(str(names[row]))
            assert file.parent.name == dataset.classes[target.argmax()]
            original = Image.open(file).convert("RGB")
            edge = round(0.8 * min(original.size))
            left, top = (original.width - edge) // 2, (original.height - edge) // 2
            expected = original.crop((left, top, left + edge, top + edge)).resize((32, 32), Image.Resampling.BILINEAR)
            difference = abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected))
            assert difference.mean() < 6  # half scale smooths the noise away
    assert len(seen) == len(set(seen)) == 40


def test_random_parts_of_encoded_pictures_are_the_same_in_any_company(made, photos):
    augment = ({"kind": "random_resized_crop"}, {"kind": "flip"})
    dataset = ImageData(path=str(photos), side=24, augment=augment, held_out=0).prepare(made)
    with dataset.loader("train", 40, 5) as loader:
        whole = next(loader)
    with dataset.loader("train", 40, 5, rank=3, world=4) as loader:
        quarter = next(loader)
    assert torch.equal(whole.images[30:], quarter.images)
    with dataset.loader("train", 40, 5) as loader:
        first, second = take(loader, 2)
    place = {row: i for i, row in enumerate(second.rows_of.tolist())}
    again = second.images[[place[row] for row in first.rows_of.tolist()]]
    assert (again != first.images).flatten(1).any(1).float().mean() > 0.9  # another part in another epoch


def test_grey_and_colour_are_what_is_asked_for(made, photos):
    grey = ImageData(path=str(photos), side=16, channels=1).prepare(made)
    assert next(iter(grey.evaluation("train", 4))).images.shape == (4, 1, 16, 16)
    assert len(grey.mean) == 1
    colour = ImageData(channels=3).prepare(made)
    batch = next(iter(colour.evaluation("train", 4)))
    assert batch.images.shape == (4, 3, 8, 8)
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])


def test_what_a_model_sees_has_mean_0_and_variance_1(made, photos):
    for config in (ImageData(), ImageData(path=str(photos), side=32, held_out=0)):
        dataset = config.prepare(made)
        pixels = torch.cat([batch.pixels() for batch in dataset.evaluation("train", 64)])
        assert pixels.mean((0, 2, 3)).abs().max() < 0.1
        assert (pixels.std((0, 2, 3)) - 1).abs().max() < 0.15


def test_a_model_to_go_on_with_says_how_pictures_are_read(made, photos):
    names = ("ant", "eel", "dog", "cow", "cat")
    reader = PictureReader(side=20, resize=25, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), classes=names)
    dataset = ImageData(path=str(photos)).prepare(made, reader)
    assert dataset.processor == reader
    batch = next(iter(dataset.evaluation("train", 36)))
    assert batch.images.shape == (36, 3, 20, 20)
    assert (batch.mean, batch.std) == (reader.mean, reader.std)
    stored = records(dataset)["name"]
    for row, target in zip(batch.rows_of.tolist(), batch.targets):
        assert names[target.argmax()] == str(stored[row]).split("/")[0]
    own = ImageData(path=str(photos), side=16, mean=(0.5,), std=(0.5,)).prepare(
        made, reader.model_copy(update={"classes": ("x",)})
    )
    assert (own.processor.side, own.mean, own.classes) == (16, (0.5,), ("cat", "dog", "eel"))


def test_models_are_made_for_the_data_or_refused(made, capsys):
    dataset = ImageData().prepare(made)
    model = ResNetConfig(image=8, channels=1, classes=10, blocks=(1,), widths=(8,))
    capsys.readouterr()
    assert dataset.fit(model, grow=False) == model
    assert dataset.fit(model.but({"classes": 7}), grow=True) == model
    assert dataset.fit(model.but({"classes": 0}), grow=False).classes == 0  # features only
    assert not capsys.readouterr().err
    assert dataset.fit(model.but({"classes": 7, "image": 16}), grow=False) == model
    assert "model.classes=10 instead of 7" in capsys.readouterr().err
    with pytest.raises(UserError, match="1 channels, the model 3"):
        dataset.fit(model.but({"channels": 3}), grow=True)

    class Words(Config):
        kind: str = "decoder"
        vocab: int = 3

    with pytest.raises(UserError, match="need a vision model, not a decoder"):
        dataset.fit(Words(), grow=True)


def test_a_store_is_used_where_it_lies(made, photos, tmp_path):
    build(photos, tmp_path / "photos.store", raw_bytes=0)
    store = ImageData(path=str(tmp_path / "photos.store"), side=16).prepare(made)
    direct = ImageData(path=str(photos), side=16, raw_bytes=0).prepare(made)
    assert (store.classes, store.facts["hash"]) == (direct.classes, direct.facts["hash"])
    assert store.mean == pytest.approx(direct.mean)
    assert not list(made.glob("*store*"))
    for one, other in zip(store.evaluation("train", 4), direct.evaluation("train", 4), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("side", [12, 9])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [1, 3, 4])
def test_a_store_serves_runs_of_other_channels(tmp_path, stored, channels, side):
    """Raw pixels become what files.py makes of them, whole and cut; so does what they are measured by."""
    values = np.random.default_rng(0).integers(0, 256, (6, 12, 12, stored), np.uint8)
    (tmp_path / "a-images-idx4-ubyte").write_bytes(idx(values))
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx(np.arange(6, dtype=np.uint8)))
    build(tmp_path, tmp_path / "a.store", held_out=0, channels=stored)
    dataset = ImageData(path=str(tmp_path / "a.store"), side=side, channels=channels).prepare(tmp_path)
    assert (dataset.facts["shape"], dataset.processor.channels) == ([12, 12, stored], channels)
    expected = np.stack([with_channels(picture, channels) for picture in values])
    assert dataset.mean == pytest.approx(expected.mean((0, 1, 2)) / 255)
    (batch,) = dataset.evaluation("train", 6)
    order = np.argsort(batch.targets.argmax(1).numpy())
    found = batch.images.permute(0, 2, 3, 1).numpy()[order]
    if side == 12:
        assert np.array_equal(found, expected)
    else:
        assert np.abs(found.astype(int) - scaled(expected, side, "bilinear")).max() <= 1
    reader = PictureReader(side=side, channels=channels)
    going_on = ImageData(path=str(tmp_path / "a.store")).prepare(tmp_path, reader)
    assert next(iter(going_on.evaluation("train", 6))).images.shape == (6, channels, side, side)


@pytest.mark.parametrize(("has", "channels"), [(1, 3), (1, 4), (3, 1), (3, 4), (4, 1), (4, 3)])
def test_channels_of_batches_are_those_of_single_pictures(has, channels):
    """With every value at every opacity."""
    value, opacity = np.meshgrid(np.arange(256), np.arange(256))
    planes = np.stack([value, 255 - value, value * 7 % 256, opacity], -1).astype(np.uint8)
    images = np.stack([planes[..., :has], planes[::-1, ..., :has]])
    found = in_channels(images, channels, Slots())
    assert np.array_equal(found, np.stack([with_channels(np.ascontiguousarray(x), channels) for x in images]))


def test_a_home_folder_is_meant_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    build("digits", tmp_path / "digits.store")
    assert is_store("~/digits.store")
    store = ImageData(path="~/digits.store").prepare(tmp_path / "made")
    assert store.size("train") + store.size("held_out") == 1797
    class_folders(tmp_path / "a", size=(8, 8, 3))
    first, again = (ImageData(path=f"{home}/a").prepare(tmp_path / "made") for home in ("~", tmp_path))
    assert first.facts == again.facts
    assert len(list((tmp_path / "made").iterdir())) == 1  # prepared once


def test_mistakes_are_told_in_a_line(made, photos, tmp_path):
    with pytest.raises(UserError, match=r"say with data\.side"):
        ImageData(path=str(photos)).prepare(made)
    with pytest.raises(UserError, match=r"augment\.1: random_resized_crop .* must come first"):
        ImageData.from_dict({"augment": [{"kind": "flip"}, {"kind": "random_resized_crop"}]})
    with pytest.raises(UserError, match="give mean and std"):
        ImageData.from_dict({"mean": [0.5]})
    with pytest.raises(UserError, match=r"data\.mean has 3 values for pictures of 1 channels"):
        ImageData(mean=(0.5,) * 3, std=(0.5,) * 3).prepare(made)
    with pytest.raises(UserError, match="held_out split of the data is empty"):
        ImageData(held_out=0).prepare(made).evaluation("held_out", 4)
    with pytest.raises(UserError, match="no split named test"):
        ImageData().prepare(made).evaluation("test", 4)
    with pytest.raises(UserError, match="6 rows cannot be shared by 4"):
        ImageData().prepare(made).loader("train", 6, 0, 0, 4)


def test_a_picture_that_was_damaged_on_disk_is_named(photos, tmp_path):
    dataset = ImageData(path=str(photos), side=16, held_out=0).prepare(tmp_path)
    stored = records(dataset)
    row = next(i for i in range(len(stored)) if str(stored["name"][i]).endswith("jpg"))
    data = bytes(stored.pictures().encoded(row))
    shard = next((tmp_path).rglob("train/*.arrow"))
    content = shard.read_bytes()
    place = content.index(data)
    shard.write_bytes(content[: place + 20] + bytes(len(data) - 20) + content[place + len(data) :])
    dataset.__init__(next(tmp_path.glob("images-*")), dataset.config)
    with pytest.raises(UserError, match=str(stored["name"][row])):
        list(dataset.evaluation("train", 8))


def maps():
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".arrow")]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts what Linux tells about a process")
@pytest.mark.parametrize("ending", ["dropped", "closed", "failed"])
def test_an_epoch_broken_off_leaves_nothing_behind(photos, tmp_path, ending):
    """No thread, no mapped or open file, whichever way the epoch ended; a batch in use stays what it was."""
    gc.collect()
    before, open_before = len(maps()), len(list(Path("/proc/self/fd").iterdir()))
    data = ImageData(path=str(photos), side=16, augment=({"kind": "random_resized_crop"},))
    dataset = data.prepare(tmp_path)
    loader, evaluation = dataset.loader("train", 8, 0), iter(dataset.evaluation("train", 4))
    kept = take(loader, 3)[1]
    next(evaluation)
    copy = kept.images.clone()
    if ending == "closed":
        loader.close()
        evaluation.close()
    if ending == "failed":
        loader._gather._fetch = None
        with pytest.raises(TypeError, match="not callable"):
            take(loader, 20)
    del dataset, loader, evaluation
    gc.collect()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and [t for t in threading.enumerate() if t.name == NAME]:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == NAME]
    if ending == "failed":
        gc.collect()  # the traceback went in a circle
    assert len(maps()) == before  # at once: nothing here waits for the garbage collector
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    assert torch.equal(kept.images, copy)


def test_batches_stay_valid_however_many_are_held(made):
    dataset = ImageData(augment=({"kind": "flip"},)).prepare(made)
    with dataset.loader("train", 32, 0) as loader:
        held = take(loader, 30)
    with dataset.loader("train", 32, 0) as loader:
        for batch in held:
            assert torch.equal(next(loader).images, batch.images)
