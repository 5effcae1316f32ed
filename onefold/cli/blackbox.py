"""`onefold tune`: search a prompt for a model, with its answers and without gradients."""

from typing import Annotated

import typer

from onefold.cli.common import Device, ServiceKeys, Settings, example, key_of, read_settings
from onefold.core.errors import UserError

app = typer.Typer(rich_markup_mode="rich")
INTERRUPTED = 130


@app.command(
    epilog=example(
        "onefold tune runs/gpt2 data=reviews.csv",
        """onefold tune model.gguf data=reviews.csv 'words={"pos": "great", "neg": "bad"}' template='{text} It was'""",
        "onefold tune model.gguf data=reviews.csv prompt=words prompt.length=5 calls=2000",
        "onefold tune http://localhost:8000/v1 data=reviews.csv calls=400 tokens=2000000",
    )
)
def tune(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|URL", help="A model that continues text, or a service of /v1/completions")
    ],
    settings: Settings = None,
    key: ServiceKeys = None,
    device: Device = "auto",
):
    """Search the prompt that makes a model classify best, without gradients and from few labelled texts.

    [bold]data=[/bold] rows of a text and its class. A local model gets vectors in front of every text (50 of them,
    p = Az + p0, z by CMA-ES), or, with [bold]prompt=words[/bold], words, which is all that a service takes, which must
    know `logprobs`. A call is one prompt put before all texts to learn from, [bold]shots=16[/bold] of each class.
    Given the same [bold]out=[/bold] again, it goes on where it stopped.
    """
    from onefold.study.tuning.tune import TuneConfig
    from onefold.study.tuning.tune import tune as run

    given = read_settings(settings)
    if "data" not in given:
        raise UserError(f"tune needs labelled texts: onefold tune {model} data=rows.csv")
    if "://" in model:
        config = TuneConfig.from_dict({"endpoint": {"url": model}, "prompt": {"kind": "words"}, "device": device})
    else:
        config = TuneConfig.from_dict({"model": model, "device": device})
    config = config.but(given)
    result = run(config, key_of(config.endpoint.url if config.endpoint else "", key))
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if result.tuned and result.bare:
        print(f"{result.tested:,} held-out texts: {result.tuned}; the template alone {result.bare}")
    print(f"loss on the texts to choose by {result.loss:.4g} after {result.calls:,} calls, {result.tokens:,} tokens")
    print(f"prompt in {result.out / 'prompt'}: {result.prompt}")
