"""What learning from preferences changed, for a report: how many answers pass a check before and after, and why not.

The values come from recipes/_own_answers.py:

    requests, tries        how many were held out, and answers to each
    pairs, own             how many were learned from; and of those, with a preferred answer of its own
    before, after, gain    {"value", "low", "high"}: shares that pass, and the difference, each with its 95% interval
    faults                 [{fault or "": how many}] before and after; "" passes
    length                 [characters] of a mean answer before and after
    examples               [{"request", "before": {"text", "fault"}, "after": {…}}]
    settings               how the answers were drawn
"""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from onefold.study.pages.samples import sample_html

FINE = (
    "The check parses and compiles an answer, compares its name and arguments with what was asked, and looks up the "
    "names that it uses. Nothing is run: an answer that passes may still do something else. A mean answer has {:,.0f} "
    "characters before and {:,.0f} after. Each request is answered {} times, {}; intervals count requests only."
)


def gain_section(found: Mapping[str, Any]) -> Markup:
    """The section of a report: a sentence that says whether there is a gain, shares, faults and examples."""
    settings = found["settings"]
    drawn = f"at temperature {settings['temperature']:g} and top-p {settings['top_p']:g}"
    body = Markup('<div class="card">{}<p class="fine">{}</p></div>').format(
        _table(found), FINE.format(*found["length"], found["tries"], drawn)
    )
    for example in found["examples"]:
        body += Markup('<article class="card sample">{}</article>').format(sample_html(_talk(example)))
    return Markup('<section id="preferences"><h2>What it learned from preferences</h2><p>{}</p>{}</section>').format(
        sentence(found), body
    )


def sentence(found: Mapping[str, Any]) -> str:
    """What was learned from, and what it changed, in words."""
    known = "the function that the request was made of"
    chosen = f"{found['own']:,} times its own, otherwise {known}" if found["own"] else known
    return (
        f"After fine-tuning it answered requests itself. From {found['pairs']:,} pairs it learned to prefer an answer "
        f"that passes a check ({chosen}) to one that it wrote and that does not. {change(found)}"
    )


def change(found: Mapping[str, Any]) -> str:
    """Whether there is a gain; one that the number of requests cannot show is called none."""
    before, after, gain = (found[name] for name in ("before", "after", "gain"))
    between = f"{100 * gain['low']:+.1f} to {100 * gain['high']:+.1f} points, 95% interval"
    points = f"{abs(100 * gain['value']):.1f} points {'more' if gain['value'] > 0 else 'fewer'} ({between})"
    if gain["low"] <= 0 <= gain["high"]:
        points = f"no difference that so few requests could show ({between})"
    return (
        f"Of {found['tries'] * found['requests']:,} answers to {found['requests']:,} requests that it has never seen, "
        f"{after['value']:.1%} pass, and {before['value']:.1%} before: {points}."
    )


def _table(found: Mapping[str, Any]) -> Markup:
    """A row for what passes and for each fault, with bars before and after, the most frequent fault first."""
    (before, after), answers = found["faults"], found["tries"] * found["requests"]
    others = sorted({*before, *after} - {""}, key=lambda name: -before.get(name, 0))
    widest = max([*before.values(), *after.values()])
    intervals = ", ".join(f"{found[n]['low']:.1%} to {found[n]['high']:.1%} {n}" for n in ("before", "after"))
    rows = Markup("")
    for name in ("", *others):
        counts = [some.get(name, 0) for some in (before, after)]
        rows += Markup(
            '<tr{}><th scope="row">{}{}</th><td class="bar">{}</td>'
            '<td class="n">{}</td><td class="n"><b>{}</b></td></tr>'
        ).format(
            Markup("" if name else ' class="ours"'),
            name or "passes the check",
            Markup("" if name else "<small>95% intervals: {}</small>").format(intervals),
            Markup("").join(Markup('<i style="width: {:.2f}%"></i>').format(100 * n / widest) for n in counts),
            *(f"{n / answers:.1%}" for n in counts),
        )
    return Markup(
        '<table class="bars gain"><thead><tr><th scope="col">An answer …</th><td></td><th scope="col" class="n">Before'
        '</th><th scope="col" class="n">After</th></tr></thead><tbody>{}</tbody></table>'
    ).format(rows)


def _talk(example: Mapping[str, Any]) -> dict[str, Any]:
    said = [{"role": "user", "content": example["request"]}]
    for when in ("before", "after"):
        name = f"Model, {when}: {example[when]['fault'] or 'passes the check'}"
        said.append({"role": "assistant", "content": example[when]["text"], "name": name})
    return {"messages": said, "language": "python"}
