"""Sequences that are read: pictures pixel by pixel, and sound sample by sample, as levels from 0 to 255."""

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.pictures.files import decode, with_channels
from onefold.data.pictures.sources import DIGITS, open_pictures, picture_stamp
from onefold.data.sequences.source import Row
from onefold.data.sources import stamp, walk
from onefold.data.text.labelled.labels import TASKS

LEVELS = [str(level) for level in range(256)]
HELD_OUT = "validation_list.txt"  # names of files, as in Speech Commands; what is in TEST is left out
TEST = "testing_list.txt"
UNASKED = "_"  # folders that begin so are no classes (Speech Commands' background noise)


class Pixels(Config):
    """Pictures of a folder, table or IDX file with classes, row by row, as grey levels (arXiv 1504.00941, section 4.2).

    Bundled digits have 64 pixels, MNIST and Fashion-MNIST 784.
    """

    kind: Literal["pixels"] = "pixels"
    path: str = DIGITS
    side: int | None = Field(default=None, ge=1)  # pictures are stretched to so many pixels a side; None: as they are

    def rows(self) -> Iterator[Row]:
        for picture in open_pictures(self.path):
            if picture.label is None:
                raise UserError(f"{picture.where} has no class: put it into a folder that is called so, or remove it")
            pixels = picture.pixels
            if pixels is None:
                pixels = decode(picture.data or b"", picture.where, channels=1)
            grey = with_channels(pixels, 1)[..., 0]
            if self.side is not None:
                size = self.side, self.side
                grey = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
            yield Row(picture.name, [LEVELS[level] for level in grey.ravel().tolist()], picture.label, picture.split)

    def size(self) -> int:
        return sum(1 for _ in open_pictures(self.path))

    def words(self) -> list[str]:
        return LEVELS

    def classes(self) -> list[str]:
        source = open_pictures(self.path)
        return [*(source.classes or TASKS["sequence"].order({p.label for p in source if p.label is not None}))]

    def stamp(self) -> dict[str, str | None]:
        return {self.path: picture_stamp(self.path)}


class Waves(Config):
    """The first `length` samples of the .wav files in a folder for each class, μ-law encoded (ITU-T G.711, μ = 255).

    Files are PCM of 8 to 32 bits, as Speech Commands has them, whose lists of held-out files are followed; channels are
    averaged. The rate is that of the files, and all must have the same.
    """

    kind: Literal["waves"] = "waves"
    path: str
    length: int = Field(default=16_000, ge=1)

    def rows(self) -> Iterator[Row]:
        root, rate = Path(self.path), None
        aside, left_out = _listed(root / HELD_OUT), _listed(root / TEST)
        for file in self._files():
            name = file.relative_to(root).as_posix()
            if name in left_out:
                continue
            samples, own = read_wave(file, self.length)
            rate = rate or own
            if own != rate:
                raise UserError(f"{file} has {own:,} samples a second, those before it {rate:,}: make them alike")
            levels = [LEVELS[level] for level in mu_law(samples).tolist()]
            label = file.relative_to(root).parts[0]
            yield Row(name, levels, label, ("held_out" if name in aside else "train") if aside else None)

    def size(self) -> int:
        left_out = _listed(Path(self.path) / TEST)
        return sum(file.relative_to(self.path).as_posix() not in left_out for file in self._files())

    def words(self) -> list[str]:
        return LEVELS

    def classes(self) -> list[str]:
        return sorted({file.relative_to(self.path).parts[0] for file in self._files()})

    def stamp(self) -> dict[str, str | None]:
        return {self.path: stamp(self.path)}

    def _files(self) -> Iterator[Path]:
        root, found = Path(self.path), False
        for file in walk(root) if root.is_dir() else ():
            parts = file.relative_to(root).parts
            if file.suffix.lower() == ".wav" and len(parts) > 1 and not parts[0].startswith(UNASKED):
                found = True
                yield file
        if not found:
            raise UserError(f"{self.path}: no .wav files in folders named by their class")


def read_wave(file: Path, most: int) -> tuple[np.ndarray, int]:
    """The first samples of a PCM file, Float32[N] between -1 and 1, and how many there are a second.

    Errors: UserError that names the file where it is none, or empty.
    """
    try:
        with wave.open(str(file), "rb") as opened:
            width, channels, rate = opened.getsampwidth(), opened.getnchannels(), opened.getframerate()
            data = opened.readframes(min(most, opened.getnframes()))
    except (wave.Error, EOFError, OSError) as error:
        raise UserError(f"{file} is no .wav file of PCM samples: {error or 'it ends too soon'}") from None
    data = data[: len(data) // (width * channels) * width * channels]
    if not data:
        raise UserError(f"{file} holds no samples")
    if width > 4:
        raise UserError(f"{file} has samples of {8 * width} bits; at most 32 are read")
    if width == 1:  # the only one without a sign
        samples = np.frombuffer(data, np.uint8).astype(np.float32) - 128
    else:
        wide = np.zeros((len(data) // width, 4), np.uint8)
        wide[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)  # little-endian: its high bytes
        samples = wide.view("<i4")[:, 0] / np.float32(2 ** (32 - 8 * width))
    return (samples / np.float32(2 ** (8 * width - 1))).reshape(-1, channels).mean(1, dtype=np.float32), rate


def mu_law(samples: np.ndarray) -> np.ndarray:
    """Levels from 0 to 255 of numbers between -1 and 1: fine where it is quiet; silence is 128."""
    squeezed = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log(256)
    return np.clip(np.floor((squeezed + 1) * 128), 0, 255).astype(np.uint8)


def _listed(file: Path) -> set[str]:
    """The names in a file, a line each."""
    try:
        return set(map(str.strip, file.read_text("utf-8").splitlines())) if file.is_file() else set()
    except UnicodeDecodeError:
        raise UserError(f"{file} is no UTF-8 text") from None
