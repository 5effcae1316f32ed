"""Verbs that change a model that is there: teach it by adapters, and make adapters a part of it."""

from pathlib import Path
from typing import Annotated

import typer

from onefold.cli.common import Adapters, ModelPath, Settings, example, open_model_at, read_settings, unused

app = typer.Typer(rich_markup_mode="rich")


@app.command(
    epilog=example(
        "onefold align model.gguf chat=dialogues.jsonl out=runs/mine",
        "onefold align runs/pretrained chat=alpaca.json epochs=2 adapt.0.rank=32 optimizer.lr=1e-4",
        "onefold align model.gguf chat=dialogues.jsonl --quantize nf4",
    )
)
def align(
    model: ModelPath,
    settings: Settings = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="nf4, fp4, int4 or int8: weights of fewer bits beside the adapters, for less memory (QLoRA)"),
    ] = None,
):
    """Teach a model to answer as your conversations do, by adapters (LoRA); a page shows its answers before and after.

    Settings: [bold]chat[/bold] a file of conversations (messages, ShareGPT, Alpaca); [bold]epochs[/bold] over them
    (3); [bold]out[/bold] where everything goes (runs/align); dotted paths of the run, as `onefold train` takes them.
    """
    from onefold.recipes.adapters.lora import align as run

    run(model, quantize=quantize, **read_settings(settings))


@app.command(
    epilog=example(
        "onefold merge runs/mine merged/",
        "onefold merge runs/mine mine.gguf --format gguf",
        "onefold merge model.gguf adapter/ --adapter poet=runs/poet --format peft",
    )
)
def merge(
    model: ModelPath,
    out: Annotated[Path, typer.Argument(help="Where the model goes")],
    format: Annotated[str, typer.Option(help="onefold, hf, gguf; peft: the adapter alone")] = "onefold",
    adapter: Adapters = None,
):
    """Make adapters a part of the weights, and write the model that comes of it."""
    unused(out)
    loaded = open_model_at(model, "cpu", adapter)
    loaded.save(out, format)
    told = f"with {loaded.adapter} merged" if format != "peft" else f"the adapter {loaded.adapter}"
    print(f"wrote {out}: {told if loaded.adapters else 'it had no adapters'}")
