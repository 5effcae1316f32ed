"""What a file of conversations looks like to a model that learns it: which tokens are learned, how long rows are, what
is left out and why."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from onefold.data.text.chat.conversations import LISTED, ChatData, Fitted, Fitter
from onefold.data.text.chat.messages import Row, with_chat
from onefold.data.text.tokenizers.tokenizer import Tokenizer

# Two shades each, so that neighbouring tokens can be told apart.
LEARNED = ("#08210d on #8fd694", "#08210d on #6fbf76")
READ = ("default", "grey58")
SPECIAL = "#5fafd7"
FITS, LONG, BAD = "#6fbf76", "#d7a55f", "#d75f5f"
SHOWN = 2000  # tokens of a conversation
BARS, WIDTH = 12, 40
# Other control characters than line breaks could change what a terminal shows.
_VISIBLE = {c: 0x2400 + c for c in range(32) if c != 10} | dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)


@dataclass
class Inspection:
    """Figures of a file of conversations, in tokens."""

    fitter: Fitter
    new: list[str] = field(default_factory=list)  # special tokens that the template brings along
    answers: int = 0
    chosen: int = 0  # of the answers, those that are learned
    tokens: int = 0  # of rows that are trained on
    learned: int = 0
    lengths: array = field(default_factory=lambda: array("q"))  # before anything is shortened
    first: list[Fitted] = field(default_factory=list)
    long: list[tuple[str, int, int]] = field(default_factory=list)  # where, tokens, and how many of them stay


def inspect_chat(data: ChatData, tokenizer: Tokenizer, count: int = 3) -> Inspection:
    """Read a file as `data.prepare` does, and keep its first `count` conversations. Rows that are not well-formed are
    counted.

    Raises UserError where there is nothing to read, or no template of that name.
    """
    talking = with_chat(tokenizer, data.template)
    fitter = Fitter(talking, data.context, data.too_long, data.learn, skip_bad=True)
    found = Inspection(fitter, [name for name in talking.special if name not in tokenizer.special])
    for one in fitter.fit(data.conversations(fitter.refuse)):
        found.answers += sum(m["role"] == "assistant" for m in one.messages)
        found.chosen += sum(m["role"] == "assistant" and m.get("weight", 1) for m in one.messages)
        found.lengths.append(one.length)
        kept = sum(len(row.ids) for row in one.rows)
        found.tokens += kept
        found.learned += sum(sum(row.learned) for row in one.rows)
        if len(found.first) < count and one.rows:
            found.first.append(one)
        if one.length - 1 > data.context and len(found.long) < LISTED:
            found.long.append((one.name, one.length, kept))
    return found


def show(found: Inspection, console: Console, unit: str = "tokens") -> None:
    """Print conversations with what is learned in colour (without colours, between « and »), and the figures."""
    fitter = found.fitter
    plain = console.color_system is None
    if found.first:
        legend = Text("  ").join(
            [
                Text(" learned ", LEARNED[0]),
                Text("read only"),
                Text("special token", SPECIAL),
                Text("↵ line break", "dim"),
            ]
        )
        console.print(Text("learned stands between « and »") if plain else legend)
    for one in found.first:
        for number, row in enumerate(one.rows):
            console.print(_panel(one, number, row, fitter.tokenizer, unit, plain))
    console.print(_figures(found, unit))
    if found.lengths:
        console.print("", _histogram(np.array(found.lengths) - 1, fitter.context, unit), sep="\n")
    if found.long:
        what = [f"{name}: {n:,} {unit}, " + (f"{kept:,} stay" if kept else "skipped") for name, n, kept in found.long]
        console.print("", _list("longer than the context", fitter.shortened + fitter.skipped, what, LONG), sep="\n")
    if fitter.bad:
        console.print("", _list("not well-formed", fitter.bad, fitter.mistakes, BAD), sep="\n")


def spell(row: Row, tokenizer: Tokenizer) -> Iterator[tuple[str, bool, bool]]:
    """(text, learned, special) of each token; the text of one that completes no character is empty."""
    names = {i: name for name, i in tokenizer.special.items()}
    stream = tokenizer.stream()
    for i, learned in zip(row.ids, row.learned):
        if i in names:
            if rest := stream.finish():
                yield rest, False, False
            yield names[i], bool(learned), True
        else:
            yield stream.push(i), bool(learned), False
    if rest := stream.finish():
        yield rest, bool(row.learned[-1]), False


def coloured(row: Row, tokenizer: Tokenizer, plain: bool = False) -> Text:
    """A row's first SHOWN tokens."""
    text, before = Text(), False
    for number, (piece, learned, special) in enumerate(spell(row, tokenizer)):
        if number == SHOWN:
            text.append(f"\n… {len(row.ids) - SHOWN:,} more", "dim")
            break
        if plain and learned != before:
            text.append("«" if learned else "»")
        before = learned
        piece = piece.translate(_VISIBLE).replace("\n", "↵\n")
        shade = (LEARNED if learned else READ)[number % 2]
        text.append(piece, (shade if learned else SPECIAL) + " bold" if special else shade)
    if plain and before:
        text.append("»")
    text.rstrip()
    return text


def _panel(one: Fitted, number: int, row: Row, tokenizer: Tokenizer, unit: str, plain: bool) -> Panel:
    which = f", row {number + 1} of {len(one.rows)}" if len(one.rows) > 1 else ""
    cut = " (shortened)" if len(one.rows) == 1 and one.length > len(row.ids) else ""
    title = f"{one.name}{which}: {len(row.ids):,} {unit}{cut}, {sum(row.learned):,} learned"
    return Panel(coloured(row, tokenizer, plain), title=Text(title), title_align="left", border_style="dim")


def _figures(found: Inspection, unit: str) -> Table:
    fitter, lengths = found.fitter, np.array(found.lengths)
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    table.add_column()
    if found.new and unit == "tokens":
        table.add_row("new tokens", Text(" ".join(found.new) + ", which the model has yet to learn", SPECIAL))
    some = f", of which {found.chosen:,} are learned" if found.chosen < found.answers else ""
    table.add_row("conversations", f"{len(lengths):,} with {found.answers:,} answers{some}")
    table.add_row("context", f"{fitter.context:,} {unit}: {fitter.note.split(';')[0]}")
    if len(lengths):
        share = found.learned / max(1, found.tokens)
        table.add_row(unit, f"{found.tokens:,}, of which {found.learned:,} are learned ({share:.1%})")
        middle, most = np.percentile(lengths, (50, 95))
        table.add_row("lengths", f"median {middle:,.0f}, 95% up to {most:,.0f}, longest {lengths.max():,}")
    return table


def _histogram(lengths: np.ndarray, context: int, unit: str) -> Group:
    """How many conversations are how long; what is longer than the context in another colour."""
    step = _step(max(1, int(lengths.max())) / BARS)
    counts = np.bincount(lengths // step)
    fit = np.bincount(lengths[lengths <= context] // step, minlength=len(counts))
    widest = len(f"{len(counts) * step:,}")
    lines = [Text(f"{unit} in a conversation", "dim")]
    for n, (count, good) in enumerate(zip(counts, fit)):
        label = f"{n * step:>{widest},}–{(n + 1) * step - 1:<{widest},} "
        bar = "█" * round(count / counts.max() * WIDTH) or ("▏" if count else "")
        part = round(good / max(1, count) * len(bar))
        lines.append(Text.assemble(label, (bar[:part], FITS), (bar[part:], LONG), f" {count:,}" if count else ""))
    return Group(*lines)


def _step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … that is not smaller."""
    power = 10 ** int(np.floor(np.log10(max(1.0, least))))
    return next(int(power * n) for n in (1, 2, 5, 10) if power * n >= least)


def _list(title: str, count: int, lines: list[str], style: str) -> Group:
    more = [Text(f"  and {count - len(lines):,} more", "dim")] if count > len(lines) else []
    return Group(Text(f"{title}: {count:,}", style), *(Text(f"  {line}".translate(_VISIBLE)) for line in lines), *more)
