"""What a fine-tuned encoder made of the texts that were held out, for its report: how good, and where it was wrong.

`text_results` asks the model and gives plain values for results.json; `text_sections` makes HTML of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from onefold.data.text.labelled.labels import Example
from onefold.infer.evaluation.judge import judge
from onefold.infer.tags import spans
from onefold.infer.text_encoder import TextEncoder

MISTAKES = 8  # shown
LONGEST = 280  # characters of a text that are shown
NOTHING = "nothing"


def text_results(encoder: TextEncoder, examples: Sequence[Example]) -> dict[str, Any]:
    """What `encoder` said of examples whose labels are known, as plain values: see `text_sections`."""
    found = judge(encoder, examples)
    pairs = [(example, *_shown(found.task, example, said)) for example, said in zip(examples, found.said)]
    if found.task == "regression":  # no number is met exactly: those that are furthest off
        pairs.sort(key=lambda pair: -abs(float(pair[1]) - float(pair[2])))
    wrong = [pair for pair in pairs if pair[1] != pair[2]]
    return {
        "task": found.task,
        "rows": len(examples),
        "figures": [asdict(figure) for figure in found.figures],
        "mistakes": [
            {"text": _short(" — ".join(filter(None, (e.text, e.second)))), "said": said, "known": known}
            for e, said, known in wrong[:MISTAKES]
        ],
    }


def _shown(task: str, example: Example, said: Any) -> tuple[str, str]:
    """What was said and what is known, in words."""
    if task == "token":
        words, _ = example.words()
        return tuple(_entities(words, names) for names in (said, [name for _, name in example.label]))  # type: ignore
    if task == "span":
        right = [answer for answer, _ in example.label] or [""]
        return said or NOTHING, (said if said in right else right[0]) or NOTHING
    return (f"{said:.4g}", f"{example.label:.4g}") if task == "regression" else (said, example.label)


def _entities(words: Sequence[str], names: Sequence[str]) -> str:
    found = [f"{' '.join(words[first : last + 1])} ({kind})" for kind, first, last in spans(names)]
    return ", ".join(found) or NOTHING


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def text_sections(results: Mapping[str, Any]) -> Markup:
    """A table of the figures with their intervals, and some mistakes."""
    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th><td class="n"><b>{}</b></td><td class="n">{} to {}</td></tr>').format(
            figure["name"][:1].upper() + figure["name"][1:],
            *(f"{figure[key]:.1%}" if figure["share"] else f"{figure[key]:.3f}" for key in ("value", "low", "high")),
        )
        for figure in results["figures"]
    )
    head = Markup('<thead><tr><td></td><th scope="col" class="n">{}</th><th scope="col" class="n">{}</th></tr></thead>')
    title = f"On {results['rows']:,} texts that it has not seen"
    page = _table("texts", title, head.format("Measured", "95% interval"), rows)
    if not results["mistakes"]:
        return page
    lines = Markup("").join(
        Markup("<tr><td>{}</td><td>{}</td><td>{}</td></tr>").format(m["text"], m["said"], m["known"])
        for m in results["mistakes"]
    )
    title = "The largest errors" if results["task"] == "regression" else "Some of its mistakes"
    head = Markup("<thead><tr>{}</tr></thead>").format(
        Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in ("Text", "It says", "It is"))
    )
    return page + _table("mistakes", title, head, lines)


def _table(name: str, title: str, head: Markup, rows: Markup) -> Markup:
    table = Markup('<div class="card"><table class="plain {}">{}<tbody>{}</tbody></table></div>').format(
        name, head, rows
    )
    return Markup('<section id="{}"><h2>{}</h2>{}</section>').format(name, title, table)
