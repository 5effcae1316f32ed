"""A file of prompts in, a file of answers out."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.core.progress import Progress
from onefold.data.text.chat.messages import chat_ids
from onefold.infer.generation.continuation import Continuation
from onefold.infer.writer import Prompt, Writer

SORTED_TOGETHER = 16  # batches that are sorted by length, so that little is padded, before their answers are written


def answer_file(model: Writer, path: Path, out: Path | None = None, batch: int = 16, **options: Any) -> None:
    """Answer every line of a JSONL file: {"prompt": "…"} is continued, {"messages": […]} answered.

    Writes each line's object with "answer" and "finish" ("stop" or "length") added, in order, to `out` or the terminal.
    All lines are read and checked before the first answer. Raises UserError naming the line.
    """
    sampling = model.sampling(options)
    if batch < 1:
        raise UserError(f"batch must be at least 1, not {batch}")
    lines = list(_read(path))
    rows = model.begin_all((_prompt(model, line, f"{path}:{number}") for number, line in lines), sampling)
    opened = nullcontext(sys.stdout) if out is None else _open(Path(out), path)
    with opened as file, Progress("answering", total=len(rows), unit="prompts") as bar:
        for start in range(0, len(rows), batch * SORTED_TOGETHER):
            pool = rows[start : start + batch * SORTED_TOGETHER]
            for some in _batches(pool, batch):
                model.finish(some, sampling)
                bar.update(len(some))
            for (_, line), row in zip(lines[start:], pool):
                print(json.dumps({**line, "answer": row.text, "finish": row.finish}, ensure_ascii=False), file=file)
            file.flush()


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number} is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise UserError(f'{path}:{number} must be an object: {{"prompt": "…"}} or {{"messages": […]}}')
        yield number, value


def _prompt(model: Writer, line: dict[str, Any], where: str) -> Prompt:
    if isinstance(line.get("prompt"), str):
        return line["prompt"]
    if not isinstance(line.get("messages"), list):
        raise UserError(f'{where} has neither a "prompt" (text) nor "messages" (a list)')
    try:
        return chat_ids(line["messages"], model.tokenizer)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _batches(rows: list[Continuation], size: int) -> Iterator[list[Continuation]]:
    ordered = sorted(rows, key=lambda row: row.read, reverse=True)  # the largest first: memory fails early
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _open(out: Path, source: Path):
    if out.resolve() == Path(source).resolve():
        raise UserError(f"the answers would overwrite the prompts in {source}; give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return out.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"could not write {out}: {error.strerror}") from None
