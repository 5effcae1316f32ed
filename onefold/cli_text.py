"""Verbs for models that read text both ways, or one text and write another: they stand beside those of cli.py."""

from typing import Annotated

import typer

from onefold.cli_common import Device, ModelPath, example, open_model_at
from onefold.core.errors import UserError

app = typer.Typer(rich_markup_mode="rich")


@app.command(epilog=example("onefold fill runs/roberta 'Paris is the <mask> of France.'"))
def fill(
    model: ModelPath,
    text: Annotated[str, typer.Argument(help="Text with the model's mask token where words are missing")],
    top: Annotated[int, typer.Option(help="How many tokens to name for each", min=1)] = 5,
    device: Device = "auto",
):
    """Say which words could stand where a text hides them."""
    loaded = _open_encoder(model, device, "does not read around hidden words")
    for found in loaded.fill_mask(text, top):
        print(", ".join(f"{token} {share:.1%}" for token, share in found))


def _open_encoder(path: str, device: str, otherwise: str):
    """The encoder at a path. Errors: UserError with what other models do not do."""
    from onefold.infer.text_encoder import TextEncoder

    loaded = open_model_at(path, device)
    if not isinstance(loaded, TextEncoder):
        raise UserError(f"{path} {otherwise}: that takes an encoder (BERT, RoBERTa, …)")
    return loaded
