"""Verbs that change a model that is there: teach it by adapters, and make adapters a part of it."""

from pathlib import Path
from typing import Annotated

import typer

from onefold.cli.common import Adapters, Device, ModelPath, Settings, example, open_model_at, read_settings, unused

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


@app.command(
    epilog=example(
        "onefold calibrate runs/mine data=other-notes/",
        "onefold calibrate runs/mine data=other-notes/ delta=0.05 epsilon=0.05 measure=state texts=400",
        "onefold generate runs/mine 'def main(' --exit calibrated",
    )
)
def calibrate(model: ModelPath, settings: Settings = None, device: Device = "auto"):
    """Find how early tokens may leave a model that was trained with objective.kind=every_layer, and keep it beside it.

    On texts that it did not learn from ([bold]data[/bold]), what is written leaving early may differ from what all
    layers write by [bold]delta[/bold] on average (0.1; 1 - ROUGE-L), or with [bold]consistency=risk[/bold] be worse by
    that; with a chance of [bold]epsilon[/bold] (0.05) that it is more. Further settings: [bold]measure[/bold] softmax,
    state or classifier; [bold]texts[/bold] (200) of [bold]prompt[/bold] (32) and [bold]tokens[/bold] (32) each.
    """
    from onefold.core.errors import UserError
    from onefold.infer.evaluation.calibrate import calibrate as run
    from onefold.infer.model import Model

    loaded, given = open_model_at(model, device), read_settings(settings)
    if not isinstance(loaded, Model):
        raise UserError(f"{model} does not continue text: only what does can be left early")
    if "data" not in given:
        raise UserError(
            f"calibrate needs data= that the model did not learn from: onefold calibrate {model} data=FOLDER"
        )
    run(loaded, model, **given)
