"""What became of a model of pictures, for its report: whom it confuses, its worst mistakes, and where it looks.

`picture_results` asks the model and gives plain values for results.json; `picture_sections` makes HTML of them, without
the model. Pictures are kept as small PNG data URIs, so that a report stays one file.
"""

import base64
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from markupsafe import Markup
from torch import Tensor, nn

from onefold.core.batch import ImageBatch
from onefold.infer.classify import Predictions, predict
from onefold.infer.generation.engine import device_of
from onefold.study.pages.confusion import confusion_chart, confusion_matrix, confusion_table, counts, from_counts
from onefold.study.pages.evidence import evidence

SIDE = 128  # pixels of a picture in a report, at most
URI = "data:image/png;base64,"
HEAT = ((16, 24, 64), (14, 124, 107), (245, 200, 70), (255, 245, 220))  # from nothing to most


def picture_results(
    network: nn.Module,
    batches: Iterable[ImageBatch],
    names: Sequence[str],
    mistakes: int = 12,
    looks: int = 6,
) -> dict[str, Any]:
    """What `network` says of the pictures in `batches`, which are read twice, as plain values.

    {"classes", "accuracy", "top5", "confusion" (see confusion.counts), "mistakes": [shot], "looks": [shot]}, a shot
    being {"picture", "map", "truth", "guess", "probability", "row"}: the most certain of the mistakes, and the most
    certain right answers, one a class.
    """
    said = predict(network, batches)
    names = [str(names[i]) if i < len(names) else str(i) for i in range(said.probabilities.shape[1])]
    wrong, right = worst_mistakes(said, mistakes), best_answers(said, looks)
    shown = _pictures(batches, {*wrong, *right})
    shots = {place: shot(network, one, said, place, names) for place, one in shown.items()}
    return {
        "classes": names,
        "accuracy": said.accuracy,
        **({"top5": said.top(5)} if len(names) > 5 else {}),
        "confusion": counts(confusion_matrix(said)),
        "mistakes": [shots[place] for place in wrong],
        "looks": [shots[place] for place in right],
    }


def picture_sections(results: Mapping[str, Any]) -> Markup:
    """The sections of a report that show what `picture_results` found."""
    names, parts = results["classes"], []
    matrix = from_counts(results["confusion"], len(names))
    chart, pairs = confusion_chart(matrix, names), confusion_table(matrix, names)
    if chart:
        caption = Markup("<figcaption><b>{}</b> <span>{}</span></figcaption>").format(chart.title, chart.note)
        drawing = Markup('<div class="card"><figure>{}<div class="scroll">{}</div></figure></div>').format(
            caption, chart.wide
        )
        table = Markup('<div class="card">{}</div>').format(pairs) if pairs else Markup("")
        parts.append(_section("confusion", "What it takes for what", _sentence(results, matrix), drawing + table))
    if results["mistakes"]:
        told = "The most certain of its mistakes, with where it found what it says."
        parts.append(_section("mistakes", "Its worst mistakes", told, _gallery(results["mistakes"])))
    if results["looks"]:
        told = "Right answers that it is most certain of, one a class."
        parts.append(_section("looks", "Where it looks", told, _gallery(results["looks"])))
    return Markup("").join(parts)


def worst_mistakes(said: Predictions, most: int) -> list[int]:
    """Places of the pictures whose true class was held least likely, among those named wrongly, the worst first."""
    wrong = torch.nonzero(said.guesses != said.truth)[:, 0]
    return wrong[said.losses[wrong].argsort(descending=True, stable=True)][:most].tolist()


def best_answers(said: Predictions, most: int) -> list[int]:
    """For each of some classes, the place of the picture that was named rightly with most certainty."""
    found: dict[int, int] = {}
    right = torch.nonzero(said.guesses == said.truth)[:, 0]
    for place in right[said.losses[right].argsort(stable=True)].tolist():
        found.setdefault(int(said.truth[place]), place)
    return [found[label] for label in sorted(found)][:most]


def shot(network: nn.Module, one: ImageBatch, said: Predictions, place: int, names: Sequence[str]) -> dict[str, Any]:
    """A picture, alone in its batch, with what was said of it and where that was found: as plain values."""
    image, guess = one.images[0], int(said.guesses[place])
    pixels = one.to(device_of(network)).pixels()
    heat = evidence(network, pixels, torch.tensor([guess], device=pixels.device))
    return {
        "picture": png_uri(image),
        "map": png_uri(overlay(image, heat[0].float().cpu())),
        "truth": names[int(said.truth[place])],
        "guess": names[guess],
        "probability": float(said.probabilities[place, guess]),
        "row": int(said.rows[place]),
    }


def overlay(image: UInt8[Tensor, "C H W"], heat: Float[Tensor, "h w"]) -> UInt8[Tensor, "3 H W"]:
    """The picture, grey, with `heat` in colour over it, from its least to (nearly) its largest value."""
    low, high = heat.min(), heat.flatten().quantile(0.99)
    level = ((heat - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    size = image.shape[1:]
    level = F.interpolate(level[None, None], size, mode="bilinear")[0, 0][..., None]  # [H, W, 1]
    stops = torch.tensor(HEAT, dtype=torch.float32)
    at = level * (len(HEAT) - 1)
    below = at.floor().clamp(max=len(HEAT) - 2)
    color = torch.lerp(stops[below.long()[..., 0]], stops[below.long()[..., 0] + 1], at - below)
    grey = image.float().mean(0)[..., None]
    return (0.45 * grey + 0.55 * color).round().byte().permute(2, 0, 1)


def png_uri(image: UInt8[Tensor, "C H W"]) -> str:
    """A picture of 1 or 3 channels as the address of itself; larger ones are made SIDE pixels wide or high."""
    if max(image.shape[1:]) > SIDE:
        share = SIDE / max(image.shape[1:])
        size = [max(1, round(side * share)) for side in image.shape[1:]]
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return URI + base64.b64encode(png(image.permute(1, 2, 0).numpy())).decode()


def png(pixels: np.ndarray) -> bytes:
    """UInt8[H, W, C], grey or RGB, as a PNG file (ISO/IEC 15948): a report needs no library of pictures for that."""
    height, width, channels = pixels.shape
    lines = np.concatenate((np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)), axis=1)  # filter 0 each
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _pictures(batches: Iterable[ImageBatch], places: set[int]) -> dict[int, ImageBatch]:
    """By place in the order of `batches`, the picture alone; copied, since a loader may use a batch's memory again."""
    found, seen = {}, 0
    for batch in batches if places else ():
        for place in places:
            if seen <= place < seen + batch.rows:
                one = batch.take(slice(place - seen, place - seen + 1)).to("cpu")
                found[place] = replace(one, images=one.images.clone(), targets=None, rows_of=None)
        seen += batch.rows
    return found


def _sentence(results: Mapping[str, Any], matrix: np.ndarray) -> str:
    text = f"Of {matrix.sum():,} pictures, {results['accuracy']:.1%} are named rightly"
    if results.get("top5") is not None:
        text += f"; {results['top5']:.1%} have their class among the first five"
    return text + "."


def _section(name: str, heading: str, sentence: str, body: Markup) -> Markup:
    return Markup('<section id="{}"><h2>{}</h2><p>{}</p>{}</section>').format(name, heading, sentence, body)


def _gallery(shots: Sequence[Mapping[str, Any]]) -> Markup:
    figure = Markup(
        '<figure><div class="pair"><img src="{}" alt="{}"><img src="{}" alt="where it looks"></div>'
        "<figcaption><b>{}</b> <span>{:.0%}</span>{}</figcaption></figure>"
    )
    parts = []
    for each in shots:
        if not all(str(each[key]).startswith(URI) for key in ("picture", "map")):
            continue  # a page of ours shows nothing from elsewhere
        truth = Markup(" <small>is {}</small>").format(each["truth"]) if each["truth"] != each["guess"] else ""
        parts.append(
            figure.format(each["picture"], each["truth"], each["map"], each["guess"], each["probability"], truth)
        )
    return Markup('<div class="card shots">{}</div>').format(Markup("").join(parts))
