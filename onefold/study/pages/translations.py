"""What became of a model that writes one text about another, for its report: what it wrote, how good, where it looked.

`translation_results` asks the model and gives plain values for results.json; `translation_sections` makes HTML of them.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from onefold.core.errors import UserError
from onefold.core.progress import Progress, say
from onefold.infer.evaluation.alignment import Alignment, align
from onefold.infer.translate import BEAMS, sacrebleu_scores, translate

CELL = 24  # of a square of a drawing, in pixels
LETTER = 6.4  # width of a letter at its side
LONGEST = 16  # letters of a word that are shown
FAINT = 0.02  # of a word's attention: what is less is not drawn
EXAMPLES, DRAWN = 8, 4  # pairs that are shown, and of these with a picture
LONG = 24  # words of a text, above which it is not drawn


def translation_results(model: Any, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What `model` writes about the sources of pairs (source, target), as plain values: see `translation_sections`."""
    with Progress("translating held-out texts", len(pairs), "texts") as bar:
        said = list(bar.over(translate(model, [source for source, _ in pairs])))
    try:
        scores = sacrebleu_scores(said, [target for _, target in pairs])
    except UserError as error:
        say(f"{error}; the report goes without them")
        scores = []
    shown = zip(pairs[:EXAMPLES], said)
    examples: list[dict[str, Any]] = [{"source": s, "reference": r, "text": text} for (s, r), text in shown]
    short = (e for e in examples if e["text"] and max(len(e["source"].split()), len(e["text"].split())) <= LONG)
    for example in islice(short, DRAWN):
        example["attention"] = _attention(model, example["source"], example["text"])
    return {
        "scores": [{"name": s.name, "value": s.value, "low": s.low, "high": s.high} for s in scores],
        "signature": scores[0].signature if scores else "",
        "pairs": len(pairs),
        "search": f"{BEAMS['beams']} beams, length penalty {BEAMS['length_penalty']}",
        "examples": examples,
    }


def _attention(model: Any, source: str, text: str) -> dict[str, Any] | None:
    try:
        found = align(model.network, model.tokenizer, source, text)
    except UserError:  # nothing to be seen in a model without attention
        return None
    return {"source": found.source, "target": found.target, "weights": found.weights.round(3).tolist()}


def alignment_chart(alignment: Alignment, title: str = "") -> Markup:
    """Attention as an inline `<svg>`: a row for each word written, a column for each that was read, dark is much."""
    across, down = ([_short(word) for word in words] for words in (alignment.source, alignment.target))
    left, top = (int(LETTER * max(map(len, words))) + 14 for words in (down, across))
    width, height = CELL * len(across), CELL * len(down)
    lean = int(0.72 * top) + 8  # what turned words take above the squares
    parts = [f'<rect width="{width}" height="{height}" fill="var(--sunken)"/>']
    for y, row in enumerate(alignment.weights):
        parts.append(_text(-8, (y + 0.5) * CELL, down[y], "end"))
        for x, share in enumerate(row):
            if share >= FAINT:
                told = f"{alignment.target[y]} looks at {alignment.source[x]}: {share:.0%}"
                square = f'<rect x="{x * CELL}" y="{y * CELL}" width="{CELL}" height="{CELL}" fill="var(--accent)"'
                parts.append(f'{square} fill-opacity="{min(1.0, share):.2f}"><title>{escape(told)}</title></rect>')
    parts += [_text((x + 0.5) * CELL, -8, word, "start", turned=True) for x, word in enumerate(across)]
    parts.append(f'<rect width="{width}" height="{height}" fill="none" stroke="var(--line)"/>')
    box = f"{-left} {-lean} {left + width + lean} {lean + height + 2}"
    return Markup(
        f'<svg class="chart alignment" role="img" aria-label="{escape(title or "Attention of words to words")}"'
        f' viewBox="{box}" style="max-width: {left + width + lean}px" font-size="12">{"".join(parts)}</svg>'
    )


def translation_sections(results: Mapping[str, Any]) -> Markup:
    """The sections of a report that show held-out texts, what the model wrote, and where it looked meanwhile.

    results: {"scores": [{"name", "value", "low", "high"}], "signature", "pairs", "search", "examples": [{"source",
    "reference", "text"} and, for some, "attention": {"source", "target", "weights"}]}.
    """
    parts = [_section("translations", "What it writes", _sentence(results), _examples(results["examples"]))]
    drawn = [example["attention"] for example in results["examples"] if example.get("attention")]
    if drawn:
        told = (
            "Each row is a word that the model wrote, and shows from which words of the source it took what it needed: "
            "the mean over the heads of one layer. Attention tells what was read, not why."
        )
        charts = [alignment_chart(Alignment(a["source"], a["target"], np.array(a["weights"]))) for a in drawn]
        cards = Markup("").join(
            Markup('<div class="card"><figure><div class="scroll">{}</div></figure></div>').format(c) for c in charts
        )
        parts.append(_section("attention", "Where it looks while it writes", told, cards))
    return Markup("").join(parts)


def _sentence(results: Mapping[str, Any]) -> str:
    said = ", ".join(f"{s['name']} {s['value']:.1f} ({s['low']:.1f} to {s['high']:.1f})" for s in results["scores"])
    if not said:
        return "Held-out texts, what the model made of them, and their references."
    return (
        f"On {results['pairs']:,} held-out pairs, written with {results['search']}: {said}; in brackets 95% intervals. "
        f"Measured by sacreBLEU ({results['signature']})."
    )


def _examples(examples: Sequence[Mapping[str, Any]]) -> Markup:
    row = Markup('<dl class="pair-of-texts"><dt>Source</dt><dd>{}</dd><dt>Model</dt><dd><b>{}</b></dd>{}</dl>')
    truth = Markup("<dt>Reference</dt><dd>{}</dd>")
    rows = [row.format(e["source"], e["text"], truth.format(e["reference"])) for e in examples]
    return Markup('<div class="card texts">{}</div>').format(Markup("").join(rows))


def _section(name: str, heading: str, sentence: str, body: Markup) -> Markup:
    return Markup('<section id="{}"><h2>{}</h2><p>{}</p>{}</section>').format(name, heading, sentence, body)


def _short(word: str) -> str:
    return word if len(word) <= LONGEST else word[: LONGEST - 1] + "…"


def _text(x: float, y: float, text: str, anchor: str, turned: bool = False) -> str:
    turn = f' transform="rotate(-45 {x:g} {y:g})"' if turned else ""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" dominant-baseline="central" fill="var(--ink)"{turn}>'
        f"{escape(text)}</text>"
    )
