"""What the verbs of the command line share: how models and settings are named, examples, and opening a model."""

import sys
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=VALUE]…", help="Settings, by dotted path: trainer.steps=100", show_default=False),
]
ModelPath = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run, a Hugging Face folder, a .gguf file, org/name, or a package with one"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto")]
# Not ONEFOLD_KEY, which is what `serve` wants from its clients: nobody else's service is to be told that.
ServiceKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--key", help="Of a service, not saved; of several, https://HOST=KEY each", envvar="ONEFOLD_SERVICE_KEY"
    ),
]

Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME=PATH", help="A run that adapted this model, or a PEFT folder; repeatable"),
]

Draft = Annotated[
    str | None,
    typer.Option(
        help="Proposes tokens, which makes one text at a time faster and no other: a smaller model of the same "
        "tokens, ngram (what the text said before), or first:N (the model's own first N layers)"
    ),
]

Exit = Annotated[
    str | None,
    typer.Option(
        "--exit",
        help="Tokens leave the model as soon as a layer is sure: calibrated (onefold calibrate), or a threshold from 0 "
        "to 1; for models trained with objective.kind=every_layer",
    ),
]


def key_of(name: str, keys: list[str] | None) -> str | None:
    """Which of the keys is for the service at an address; None for what is no address."""
    from onefold.infer.teaching.endpoint import keys_of

    return keys_of([name], keys or ())[name] if "://" in name else None


def example(*lines: str) -> str:
    """What stands below a verb's help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]{line}[/cyan]" for line in lines)


def open_model_at(path: str, device: str, adapter: list[str] | None = None):
    """The model at a path, on the device of that name; with adapters, the first of them at work."""
    from onefold.core.device import pick
    from onefold.infer.model import load

    return load(path, device=pick(device), adapters=read_adapters(adapter))


def open_writer(
    path: str, device: str, adapter: list[str] | None = None, draft: str | None = None, exit: str | None = None
):
    """The same for verbs that only a model that writes text can do, perhaps with a draft, perhaps leaving early."""
    from onefold.infer.model import as_writer

    writer = as_writer(open_model_at(path, device, adapter), path)
    if draft is not None:
        writer.speculate(draft)
    if exit is not None:
        writer.leave_early(exit)
    return writer


def tell_layers(writer: Any) -> None:
    """Say, beside what was written, how many layers its tokens took, if they could leave early."""
    if (left := writer.early_exit) is not None and left.tokens:
        print(f"{left.mean_layers:.1f} of {left.depth} layers a token", file=sys.stderr)


def read_adapters(given: list[str] | None) -> dict[str, str]:
    """The paths of --adapter NAME=PATH options by name; a path alone is called as its last part."""
    from onefold.core.errors import UserError

    found: dict[str, str] = {}
    for text in given or []:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else (PurePath(text).name.replace(".", "_"), text)
        if not name or not path or name in found:
            raise UserError(f"--adapter {text}: write it as NAME=PATH, each name once")
        found[name] = path
    return found


def unused(out: Path) -> Path:
    """`out`, where a model is to be written: nothing that lies there is replaced, since it may be a run."""
    from onefold.core.errors import UserError

    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists already: name another place, or remove it first")
    return out


def read_settings(given: list[str] | None) -> dict[str, Any]:
    """The values of NAME=VALUE arguments by name."""
    from onefold.core.config import parse_override

    return dict(parse_override(text) for text in given or [])
