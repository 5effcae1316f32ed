"""Animated pictures and stacks of pages become clips where that is wanted."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from onefold.core.errors import UserError
from onefold.data.pictures import files as picture_files
from onefold.data.pictures.files import BadPicture, clip, header
from onefold.data.pictures.images import ImageData
from onefold.data.pictures.store import append, build, info, sample, verify
from onefold.data.records import Records
from tests.data.pictures.makers import encoded, noise

KINDS = {"GIF": ".gif", "WEBP": ".webp", "PNG": ".apng", "TIFF": ".tif"}


def moving(kind, count=6, size=(12, 16), channels=3, seed=0):
    """(a file, its frames UInt8[T, H, W, C]) in colours that even a GIF keeps."""
    frames = noise(count, *size, channels, seed=seed) & 0xC0
    images = [Image.fromarray(frame.squeeze()) for frame in frames]
    if kind == "GIF":
        images = [image.quantize(64, dither=Image.Dither.NONE) for image in images]
        frames = np.stack([np.asarray(image.convert("RGB")) for image in images])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:], **options)
    return buffer.getvalue(), frames


@pytest.fixture
def gestures(tmp_path):
    """Two classes of clips of every kind, and a still."""
    for i, name in enumerate(("nod", "wave")):
        (tmp_path / "a" / name).mkdir(parents=True)
        for j, (kind, suffix) in enumerate(KINDS.items()):
            (tmp_path / "a" / name / f"{j}{suffix}").write_bytes(moving(kind, 4 + j, seed=10 * i + j)[0])
    (tmp_path / "a" / "nod" / "still.jpg").write_bytes(encoded(noise(12, 16, 3), "JPEG"))
    return tmp_path / "a"


def pixels(view, row):
    frames = [bytes(view.encoded(row, frame)) for frame in range(view.frames(row))]
    return np.stack([np.asarray(Image.open(io.BytesIO(frame))) for frame in frames])


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_kept_as_it_is(kind):
    data, expected = moving(kind)
    assert (header(data, "x").frames, header(data, "x", count=True).frames) == (2, 6)
    frames, found = clip(data, "x", 3, None, 100)
    assert np.array_equal(np.stack([np.asarray(Image.open(io.BytesIO(f))) for f in frames]), expected)
    assert (found.height, found.width, found.channels, found.frames) == (12, 16, 3, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_of_long_ones_frames_from_the_first_to_the_last_are_kept(kind):
    data, expected = moving(kind, 9)
    frames, _ = clip(data, "x", 3, None, 3)
    assert np.array_equal(np.stack([np.asarray(Image.open(io.BytesIO(f))) for f in frames]), expected[[0, 4, 8]])
    [small], found = clip(data, "x", 1, 6, 1)
    assert (found.height, found.width, found.channels) == (6, 8, 1)
    assert Image.open(io.BytesIO(small)).size == (8, 6)


def test_a_folder_of_clips_is_a_store(gestures, tmp_path, capsys):
    facts = build(gestures, tmp_path / "store", frames=5, held_out=0)
    assert "of 4 clips 5 frames are kept, evenly spread; the longest has 7" in capsys.readouterr().err
    assert (facts["frames"], facts["storage"], facts["train"]["images"]) == (5, "encoded", 9)
    records = Records(tmp_path / "store" / "train")
    view = records.pictures()
    names = [records["name"][row] for row in range(9)]
    counts = {name: view.frames(row) for row, name in enumerate(names)}
    assert counts["wave/0.gif"] == 4
    assert counts["wave/3.tif"] == 5
    assert counts["nod/still.jpg"] == 1
    expected = moving("WEBP", 5, seed=11)[1]
    assert np.array_equal(pixels(view, names.index("wave/1.webp")), expected)
    assert view.encoded(names.index("nod/still.jpg")) == (gestures / "nod" / "still.jpg").read_bytes()
    assert info(tmp_path / "store")["records"]["train"]["columns"]["image"] == "encoded clips"
    assert verify(tmp_path / "store") == []
    with pytest.raises(UserError, match="frames is that of the store"):
        append(gestures, tmp_path / "store", frames=4)
    (gestures / "nod" / "more.gif").write_bytes(moving("GIF", 8, seed=99)[0])
    append(gestures, tmp_path / "store")
    assert Records(tmp_path / "store" / "train").pictures().frames(9) == 5


def test_samples_are_sheets_of_frames(gestures, tmp_path):
    build(gestures, tmp_path / "store", frames=100, held_out=0)
    files = sample(tmp_path / "store", tmp_path / "out", 9)
    assert len(files) == 9
    records = Records(tmp_path / "store" / "train")
    row = [records["name"][r] for r in range(9)].index("nod/2.apng")
    sheet = np.asarray(Image.open(tmp_path / "out" / f"{row:06}-nod.png"))
    frames = moving("PNG", 6, seed=2)[1]
    assert np.array_equal(sheet, np.concatenate([np.concatenate(list(frames[i : i + 3]), axis=1) for i in (0, 3)]))


def test_without_being_asked_the_first_frame_counts_and_that_is_told(gestures, tmp_path, capsys):
    facts = build(gestures, tmp_path / "store", held_out=0)
    assert "8 pictures have several frames, of which the first counts" in capsys.readouterr().err
    assert (facts["frames"], facts["shape"]) == (None, [12, 16, 3])
    assert Records(tmp_path / "store" / "train").pictures().frames(0) == 1


def test_a_reader_of_stills_says_that_it_has_met_clips(gestures, tmp_path):
    build(gestures, tmp_path / "store", frames=5, held_out=0)
    with pytest.raises(UserError, match="holds clips, but these models see stills"):
        ImageData(path=str(tmp_path / "store"), side=8).prepare(tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", np.linspace(0.1, 0.95, 7).tolist())
def test_a_truncated_clip_never_passes_as_a_shorter_one(kind, share, recwarn):
    data, _ = moving(kind)
    cut = data[: int(len(data) * share)]
    with pytest.raises(BadPicture, match=r"^x "):
        clip(cut, "x", 3, None, 100)


@pytest.mark.parametrize("count", [1, 6])
def test_a_gif_ends_with_its_trailer(count, gestures, tmp_path):
    """Without it nobody knows whether frames are missing; what some programs write after it does not matter."""
    data, _ = moving("GIF", count)
    for after in (b"\0\0", b"\r\n"):
        assert len(clip(data + after, "x", 3, None, 100)[0]) == count
    for cut in range(1, 40):
        with pytest.raises(BadPicture, match="x is truncated"):
            clip(data[:-cut], "x", 3, None, 100)
    (gestures / "nod" / "short.gif").write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"short\.gif is truncated"):
        build(gestures, tmp_path / "store", frames=5)


def test_pages_are_counted_only_for_clips_and_up_to_a_bound(monkeypatch):
    data, _ = moving("TIFF", 9)
    sought = []
    seek = TiffImagePlugin.TiffImageFile.seek
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "seek", lambda self, n: (sought.append(n), seek(self, n))[1])
    assert header(data, "x").frames == 2
    assert sought == []
    monkeypatch.setattr(picture_files, "MAX_FRAMES", 4)
    for kind in KINDS:
        for read in (lambda d: header(d, "x", count=True), lambda d: clip(d, "x", 3, None, 2)):
            with pytest.raises(BadPicture, match="x has more than 4 frames"):
                read(moving(kind, 9)[0])
            read(moving(kind, 4)[0])
    assert max(sought) <= 4


def test_what_cannot_be_a_clip_is_a_bad_picture(monkeypatch):
    pages = [Image.fromarray(noise(12, 16, 3)), Image.fromarray(noise(10, 16, 3))]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(BadPicture, match="x has pages of 16 × 12 and of 16 × 10"):
        clip(buffer.getvalue(), "x", 3, None, 5)
    data, _ = moving("PNG")
    with pytest.raises(BadPicture, match=r"^x is damaged"):
        clip(data[: len(data) // 2], "x", 3, None, 5)
    monkeypatch.setattr(picture_files, "MAX_CLIP_PIXELS", 1000)
    with pytest.raises(BadPicture, match="x has 6 frames of 16 × 12 pixels, more than 1,000 in all"):
        clip(data, "x", 3, None, 5)
