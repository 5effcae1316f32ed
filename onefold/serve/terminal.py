"""Talking to a model in the terminal: answers stream as Markdown, commands begin with a slash, Ctrl-C stops an answer.

With input from a pipe it is a filter: each line is a turn of one conversation, each answer is printed as one line (line
breaks in it as `\\n`), everything else goes to stderr.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

from onefold.core.errors import UserError
from onefold.core.files import atomic_write
from onefold.data.text.chat.messages import chat_ids
from onefold.infer.generation.sampling import Sampling

DEFAULTS = {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": 512}
HELP = """\
/system TEXT   tell the model how to behave (without TEXT: no longer)
/reset         forget the conversation
/save [FILE]   write the conversation as a line of JSONL, which onefold trains on
/help          this
/quit          leave (or Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next."""
HELP_TEXT = "This model has no chat template: it continues what you write. Enter alone lets it go on.\n"


def chat(model: Any, system: str | None = None, plain: bool = False, **sampling: Any) -> None:
    """Talk to a loaded model until /quit or the end of input.

    `plain`: text as it comes, without Markdown. `sampling`: settings of `infer.sampling.Sampling`.
    """
    session = Session(model, system, sampling)
    if not sys.stdin.isatty():
        return _filter(session)
    console = Console(highlight=False, soft_wrap=False)
    _greet(session, console)
    while (line := _read(session, console)) is not None:
        try:
            if line.startswith("/"):
                console.print(session.command(line), style="dim", markup=False)
            elif line.strip() or (not session.takes_turns and session.text):
                _speak(session, line, console, plain or not console.is_terminal)
        except Leave:
            break
        except UserError as error:
            console.print(str(error), style="red", markup=False)


class Leave(Exception):
    """The user wants out."""


class Session:
    """A conversation with a model, or, for one that knows no turns, a text that it continues."""

    def __init__(self, model: Any, system: str | None = None, sampling: dict[str, Any] | None = None):
        self.model, self.system = model, system
        self.sampling = DEFAULTS | (sampling or {})
        Sampling.from_dict(self.sampling)  # a typo is told before the first question
        self.takes_turns = bool(model.tokenizer.chat_template)
        self.continues = getattr(model, "continues", True)
        self.messages: list[dict[str, str]] = []
        self.text = ""

    def answer(self, line: str) -> Iterator[str]:
        """The pieces of the answer to a line. What has come so far is remembered, also when it is stopped half-way."""
        if not self.takes_turns:
            self.text = line or self.text
            for piece in self.model.stream(self.text, **self.sampling):
                self.text += piece if self.continues else ""
                yield piece
            return
        self.messages.append({"role": "user", "content": line})
        said: dict[str, str] = {"role": "assistant", "content": ""}
        try:
            for piece in self.model.chat(self._fitting(), stream=True, **self.sampling):
                said["content"] += piece
                yield piece
        finally:
            if said["content"]:
                self.messages.append(said)
            else:
                self.messages.pop()  # unanswered: two turns of the user in a row confuse a model

    def _fitting(self) -> list[dict[str, str]]:
        """The conversation without its oldest exchanges, as far as it must be shortened to leave room for an answer."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        kept, limit = list(self.messages), self.model.context
        if limit is not None:
            room = min(self.sampling["max_new_tokens"], limit // 4)
            while len(kept) > 1 and len(chat_ids(opening + kept, self.model.tokenizer)) > limit - room:
                kept = kept[2:]
        return opening + kept

    def command(self, line: str) -> str:
        """Obey a line that begins with a slash; what to tell the user. Raises Leave, or UserError for a mistake."""
        name, _, rest = line[1:].strip().partition(" ")
        rest = rest.strip()
        if name in ("quit", "exit", "q"):
            raise Leave
        if name == "help":
            return HELP if self.takes_turns else HELP_TEXT + HELP
        if name == "reset":
            self.messages, self.text = [], ""
            return "forgotten"
        if name == "system":
            if not self.takes_turns:
                raise UserError("this model has no chat template, so it takes no system prompt")
            self.system = rest or None
            return "understood, from the next answer on" if rest else "no system prompt"
        if name == "save":
            return f"saved to {self.save(rest)}"
        raise UserError(f"there is no /{name}; /help lists the commands")

    def save(self, name: str = "") -> Path:
        """Write the conversation as one line of JSONL to a new file."""
        if not self.messages and not self.text:
            raise UserError("there is nothing to save yet")
        path = Path(name or time.strftime("chat-%Y%m%d-%H%M%S.jsonl")).expanduser()
        if path.exists():
            raise UserError(f"{path} exists; choose another name")
        opening = [{"role": "system", "content": self.system}] if self.system else []
        what = {"messages": opening + self.messages} if self.takes_turns else {"text": self.text}
        atomic_write(path, json.dumps(what, ensure_ascii=False) + "\n")
        return path


def _filter(session: Session) -> None:
    for line in sys.stdin:
        line = line.rstrip("\r\n")
        try:
            if line.startswith("/"):
                print(session.command(line), file=sys.stderr)
            elif line.strip():
                print("".join(session.answer(line)).strip().replace("\r", "").replace("\n", "\\n"), flush=True)
        except Leave:
            return


def _greet(session: Session, console: Console) -> None:
    import readline  # noqa: F401 - gives input() history and editing

    context = f", context {session.model.context:,}" if session.model.context else ""
    console.print(f"[bold]{session.model.parameters_count:,}[/] parameters{context}")
    if not session.takes_turns:
        console.print(HELP_TEXT.strip(), style="dim", markup=False)
    console.print("/help lists the commands, /quit leaves", style="dim", markup=False)


def _read(session: Session, console: Console) -> str | None:
    """A line of the user's, or several joined where they end in a backslash; None at the end of input."""
    sign = "›" if console.encoding.startswith("utf") else ">"
    # \001 and \002 tell readline which characters have no width.
    prompt = f"\001\033[1;36m\002{sign} \001\033[0m\002" if console.is_terminal else f"{sign} "
    lines: list[str] = []
    while True:
        try:
            line = input(f"\n{prompt}" if not lines else "  ")
        except KeyboardInterrupt:
            console.print("\n/quit or Ctrl-D leaves", style="dim", markup=False)
            lines = []
            continue
        except EOFError:
            console.print()
            return None
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _speak(session: Session, line: str, console: Console, plain: bool) -> None:
    began, first, pieces, note = time.monotonic(), None, [], ""
    view = PlainView(console) if plain or not session.takes_turns else MarkdownView(console)
    with view:
        try:
            for piece in session.answer(line):
                first = first or time.monotonic()
                pieces.append(piece)
                view.push(piece)
        except KeyboardInterrupt:
            note = " · stopped"
    count = len(session.model.tokenizer.encode("".join(pieces)))
    seconds = time.monotonic() - (first or began)
    rate = f" · {(count - 1) / seconds:.1f} tokens/s" if count > 1 and seconds > 0 else ""
    console.print(f"{count} tokens{rate}{note}", style="dim", markup=False)


class PlainView:
    """Text as it comes."""

    def __init__(self, console: Console):
        self.console = console

    def __enter__(self) -> "PlainView":
        return self

    def push(self, piece: str) -> None:
        self.console.print(piece, end="", markup=False, soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        self.console.print()


class MarkdownView:
    """Markdown as it comes: finished blocks are printed for good, the one being written is redrawn below them."""

    def __init__(self, console: Console):
        self.console = console
        self.source = ""
        self.live = Live("[dim]…[/]", console=console, transient=True, refresh_per_second=12)

    def __enter__(self) -> "MarkdownView":
        self.live.start()
        return self

    def push(self, piece: str) -> None:
        self.source += piece
        done = finished(self.source)
        if done:
            self.live.console.print(Markdown(self.source[:done]))
            self.source = self.source[done:]
        self.live.update(Tail(self.source))

    def __exit__(self, *_: object) -> None:
        self.live.stop()
        if self.source.strip():
            self.console.print(Markdown(self.source))


class Tail:
    """The last lines of some Markdown, as many as the screen holds: what scrolls out cannot be redrawn."""

    def __init__(self, source: str):
        self.source = source

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self.source), options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


def finished(source: str) -> int:
    """How many characters of a growing Markdown text are blocks that will not change: up to the last empty line
    outside a code fence that is followed by a line that is not indented (which could belong to a list above)."""
    fence, place, end, empty = "", 0, 0, False
    for line in source.splitlines(keepends=True):
        text = line.strip()
        if empty and not fence and text and line[0] not in " \t":
            end = place
        if text.startswith(("```", "~~~")):
            if not fence:
                fence = text[:3]
            elif text.startswith(fence) and not text.strip(fence[0]):
                fence = ""
        empty = not text and line.endswith("\n")
        place += len(line)
    return end
