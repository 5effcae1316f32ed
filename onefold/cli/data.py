"""`onefold data VERB …`: stores of pictures and of text, and a look into any prepared data."""

import json
from pathlib import Path
from typing import Annotated

import typer

from onefold.cli.common import Settings, example, read_settings

app = typer.Typer(
    name="data",
    help="Prepare pictures or text once, look at what was prepared, and check that it is whole.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DAMAGED = 1

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store, or the data folder of a run")]


@app.command(
    epilog=example(
        "onefold data build photos/ photos.store side=128",
        "onefold data build fashion-mnist/ fashion.store",
        "onefold data build birds.csv birds.store image=file label=species skip_bad=true",
        "onefold data build more-birds/ birds.store --append",
        "onefold data build gestures/ gestures.store frames=16 side=64",
        "onefold data build notes/ notes.store --text tokenizer.vocab=8192",
    )
)
def build(
    source: Annotated[str, typer.Argument(help="A folder by class, IDX files, a table, a saved dataset, or digits")],
    out: Annotated[Path, typer.Argument(help="Where the store goes; must not exist yet, unless --append")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]…", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that decode (default: one for each core)", min=1)] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to a store that is there")] = False,
    new_classes: Annotated[
        bool, typer.Option("--new-classes", help="With --append: classes that are new get the next numbers")
    ] = False,
    text: Annotated[
        bool, typer.Option("--text", help="A store of tokens, of a folder, .txt, .jsonl, .parquet or saved dataset")
    ] = False,
):
    """Make a store of pictures, or with --text of tokens: read once, quick to train from.

    Settings: [bold]side[/bold] to bring pictures down to; [bold]raw_bytes[/bold] up to which pictures of one size are
    kept as raw pixels (65536), others stay encoded; [bold]channels[/bold] 1, 3 or 4; [bold]held_out[/bold] share (0.1)
    where the source has no split of its own; [bold]image[/bold] and [bold]label[/bold], columns of a table;
    [bold]frames[/bold] to keep animated GIF, PNG and WebP and TIFF of several pages as clips of up to so many frames;
    [bold]skip_bad[/bold] to list bad pictures instead of stopping.

    With [bold]--append[/bold] pictures join a store, stored as those in it are; labels keep their numbers, and what is
    in it already is left out. Until all are written, the store stays as it was; runs that were begun before go on with
    what it held then.

    With [bold]--text[/bold] settings are those of a run's data: [bold]tokenizer.vocab[/bold] (4096),
    [bold]held_out[/bold] share (0.05), [bold]validation[/bold], [bold]sources.0.field[/bold] of a table.
    """
    from onefold.core.config import parse_override
    from onefold.core.errors import UserError
    from onefold.data.pictures import store
    from onefold.data.text.documents import TextData

    given = dict(parse_override(setting) for setting in settings or [])
    if text:
        if append:
            raise UserError("--append is for pictures: a store of text is made anew")
        TextData(sources=source).but(given).build(out)
        print(f"wrote {out}")
    elif append:
        store.append(source, out, **{"workers": workers, "new_classes": new_classes} | given)
    elif new_classes:
        raise UserError("--new-classes is for --append: a new store takes all classes that it finds")
    else:
        store.build(source, out, **{"workers": workers} | given)
        print(f"wrote {out}")


@app.command(epilog=example("onefold data info photos.store", "onefold data info runs/quickstart/pretrain/data/*"))
def info(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE…", help="Stores, or data folders of runs")],
):
    """Print what stores hold, as JSON."""
    from onefold.data.pictures import store

    found = {str(path): store.info(path) for path in stores}
    print(json.dumps(found if len(found) > 1 else next(iter(found.values())), indent=2, ensure_ascii=False))


@app.command(epilog=example("onefold data verify photos.store"))
def verify(path: StorePath):
    """Compare all checksums; name what is damaged, to the page. Exit code 1 when something is."""
    from onefold.data.pictures import store

    problems = store.verify(path)
    print("\n".join(problems) if problems else f"{path} is whole")
    if problems:
        raise typer.Exit(DAMAGED)


@app.command(epilog=example("onefold data sample photos.store look/", "onefold data sample photos.store look/ -n 64"))
def sample(
    path: StorePath,
    out: Annotated[Path, typer.Argument(help="Folder for the files")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many records", min=1)] = 16,
    split: Annotated[str | None, typer.Option(help="train or held_out (default: the first there is)")] = None,
    seed: Annotated[int, typer.Option(help="Another one shows other records", min=0)] = 0,
):
    """Write some records as files to look at: pictures, clips frame by frame on one sheet, or texts."""
    from onefold.data.pictures import store

    print(f"wrote {len(store.sample(path, out, count, split, seed))} files to {out}")


@app.command(
    epilog=example(
        "onefold data inspect dialogues.jsonl --model model.gguf",
        "onefold data inspect sharegpt.json --model runs/llama template=llama-3 context=2048 -n 1",
        "onefold data inspect alpaca.json template=alpaca",
    )
)
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Conversations, as chat data are read")],
    settings: Settings = None,
    model: Annotated[
        str | None, typer.Option(help="Whose tokenizer and template: a run, folder or .gguf (default: bytes)")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many conversations to show", min=0)] = 3,
):
    """Show conversations as a model learns them: what is learned in colour, how long they are, what is left out.

    Settings are those of a run's chat data: [bold]template[/bold], a name (chatml, llama-2, llama-3, mistral, zephyr,
    gemma, alpaca, vicuna) or a file; [bold]context[/bold] (512); [bold]learn[/bold] answers or last;
    [bold]too_long[/bold] shorten or skip. Exit code 1 when a row is not well-formed.
    """
    from rich.console import Console

    from onefold.data.text.chat.conversations import ChatData
    from onefold.data.text.chat.report import inspect_chat, show
    from onefold.data.text.tokenizers.tokenizer import Tokenizer
    from onefold.interop.tokenizers.reader import open_tokenizer

    data = ChatData.from_dict({"path": str(file), "held_out": 0, **read_settings(settings)})
    tokenizer = open_tokenizer(model) if model else Tokenizer.train([], 512)
    found = inspect_chat(data, tokenizer, count)
    show(found, Console(highlight=False), "tokens" if model else "bytes")
    if found.fitter.bad:
        raise typer.Exit(DAMAGED)
