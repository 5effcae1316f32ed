"""The command line: `onefold VERB NOUN name=value …`. Verbs only translate; what they do lives below."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from onefold import recipes
from onefold.cli.adapt import app as adapting_verbs
from onefold.cli.blackbox import app as blackbox_verbs
from onefold.cli.common import (
    Adapters,
    Device,
    Draft,
    Exit,
    ModelPath,
    Settings,
    example,
    open_model_at,
    open_writer,
    read_adapters,
    read_settings,
    tell_layers,
    unused,
)
from onefold.cli.data import app as data_verbs
from onefold.cli.proteins import app as protein_verbs
from onefold.cli.teach import app as teaching_verbs
from onefold.cli.text import app as text_verbs
from onefold.cli.words import app as word_verbs
from onefold.core.errors import UserError

RecipeOrFile = Annotated[
    str,
    typer.Argument(metavar="RECIPE|FILE", help="A recipe's name; a config file, or a run's folder (./NAME where both)"),
]
INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended

app = typer.Typer(
    name="onefold",
    help="One toolkit for every foundation model: train, adapt, evaluate, chat, serve.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    epilog=example(
        "onefold quickstart",
        "onefold quickstart data=notes/ minutes=30",
        "onefold quickstart data=articles.jsonl chat=dialogues.jsonl out=runs/mine",
    )
)
def quickstart(settings: Settings = None):
    """Text in, a trained, evaluated, chatting model out, in minutes.

    Settings: [bold]data[/bold] a folder, text, JSONL, Parquet or Hugging Face dataset on disk (default: this Python's
    standard library); [bold]minutes[/bold] of training (5), which pre-training, fine-tuning and, for Python,
    preferences share; [bold]chat[/bold] a JSONL of messages to fine-tune on; [bold]out[/bold] where everything goes
    (runs/quickstart); [bold]seed[/bold].
    """
    from onefold.recipes.quickstart import run

    run(**read_settings(settings))


@app.command(
    epilog=example(
        "onefold train gpt2 --tiny data=notes/ out=runs/notes",
        "onefold train llama2 data=corpus.jsonl model.depth=16 optimizer.lr=1e-3",
        "onefold train my.json",
        "torchrun --nproc-per-node 2 -m onefold train gpt2 --tiny data=notes/ out=runs/notes",
    )
)
def train(
    what: RecipeOrFile,
    settings: Settings = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="The same idea in minutes on two cores")] = False,
):
    """Train a recipe on your data. Given the same [bold]out=[/bold] again, it goes on where it stopped."""
    if recipes.train(what, tiny=tiny, **read_settings(settings)).status == "interrupted":
        raise typer.Exit(INTERRUPTED)


@app.command(epilog=example("onefold show gpt2 > my.json", "onefold show mistral --tiny model.depth=8"))
def show(
    what: RecipeOrFile,
    settings: Settings = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="The same idea in minutes on two cores")] = False,
):
    """Print the resolved configuration as JSON: edit it, and `onefold train` it."""
    print(recipes.resolve(what, read_settings(settings), tiny).to_json())


@app.command(
    epilog=example(
        "onefold generate runs/quickstart 'def main('",
        "onefold generate model.gguf prompts.jsonl --out answers.jsonl temperature=0.8 max_new_tokens=100",
        "onefold generate model.gguf 'def main(' --draft ngram",
    )
)
def generate(
    model: ModelPath,
    prompt: Annotated[str, typer.Argument(help="Text to continue, or a JSONL file with a prompt or messages a line")],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Where answers to a JSONL go (default: printed)")] = None,
    batch: Annotated[int, typer.Option(help="Prompts answered at once")] = 16,
    adapter: Adapters = None,
    draft: Draft = None,
    exit: Exit = None,
    device: Device = "auto",
):
    """Continue a text, write one about it (T5, BART, translation), or answer a file of prompts."""
    from onefold.infer.prompts import answer_file

    loaded, sampling = open_writer(model, device, adapter, draft, exit), read_settings(settings)
    if prompt.endswith(".jsonl"):
        answer_file(loaded, Path(prompt), out, batch=batch, **sampling)
        tell_layers(loaded)
        return
    pieces = loaded.stream(prompt, **sampling)  # mistakes are told before anything is printed
    if loaded.continues:
        print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    tell_layers(loaded)


@app.command(epilog=example("onefold chat runs/quickstart", "onefold chat model.gguf temperature=0.5"))
def chat(
    model: ModelPath,
    settings: Settings = None,
    adapter: Adapters = None,
    draft: Draft = None,
    exit: Exit = None,
    device: Device = "auto",
):
    """Talk to a model in the terminal."""
    from onefold.serve.terminal import chat as talk

    talk(open_writer(model, device, adapter, draft, exit), **read_settings(settings))


@app.command(
    epilog=example(
        "onefold serve runs/quickstart",
        "onefold serve model.gguf --host 0.0.0.0 --port 8080",
        "onefold serve model.gguf --adapter poet=runs/poet --adapter clerk=runs/clerk",
    )
)
def serve(
    model: ModelPath,
    host: Annotated[str, typer.Option(help="Anything wider than loopback requires a key")] = "127.0.0.1",
    port: int = 8000,
    key: Annotated[
        str | None, typer.Option(help="What clients must send; made up when needed", envvar="ONEFOLD_KEY")
    ] = None,
    adapter: Adapters = None,
    draft: Draft = None,
    exit: Exit = None,
    device: Device = "auto",
):
    """A chat page and an OpenAI-compatible API at /v1. Adapters are further models that a request may name."""
    from onefold.serve.server import serve as run

    run(model, host=host, port=port, key=key, device=device, adapters=read_adapters(adapter), draft=draft, exit=exit)


@app.command(
    epilog=example(
        "onefold evaluate runs/quickstart data=notes/",
        "onefold evaluate model.gguf data=stdlib",
        "onefold evaluate runs/vit data=photos/",
        "onefold evaluate runs/reviews data=test.csv",
        "onefold evaluate runs/de-en data=test.de,test.en",
        "onefold evaluate runs/cpt data=pairs.jsonl first=question second=answer",
    )
)
def evaluate(model: ModelPath, settings: Settings = None, device: Device = "auto"):
    """How good a model is on your data ([bold]data=[/bold]): bits per byte, accuracy, F1, BLEU, by what it does.

    A fine-tuned encoder is judged on rows as it was trained on, by what its task is measured with; a model that makes
    vectors by how well it finds the second texts of pairs by the first ones, with BM25 beside it; one that translates,
    on SOURCE,TARGET files, by BLEU and chrF; one that restores text (T5, BART), by the loss on what is hidden.
    """
    from onefold.infer.classify import Classifier, evaluate_pictures
    from onefold.infer.embedder import TextEmbedder
    from onefold.infer.evaluation.evaluate import evaluate_text
    from onefold.infer.evaluation.judge import judge_rows
    from onefold.infer.evaluation.restore import judge_texts
    from onefold.infer.model import as_writer
    from onefold.infer.retrieve import evaluate_retrieval
    from onefold.infer.seq2seq import Seq2SeqModel
    from onefold.infer.text_encoder import TextEncoder

    loaded, given = open_model_at(model, device), read_settings(settings)
    if "data" not in given:
        raise UserError(f"evaluate needs data=: onefold evaluate {model} data=FOLDER")
    if isinstance(loaded, Classifier):
        evaluate_pictures(loaded, **given)
    elif isinstance(loaded, TextEncoder):
        judge_rows(loaded, **given)
    elif isinstance(loaded, Seq2SeqModel):
        judge_texts(loaded, **given)
    elif isinstance(loaded, TextEmbedder):
        evaluate_retrieval(loaded, **given)
    else:
        evaluate_text(as_writer(loaded, model), **given)


@app.command(
    epilog=example(
        "onefold classify runs/vit photo.jpg",
        "onefold classify runs/vit photos/*.jpg --top 1",
        "onefold classify runs/reviews 'a fine film'",
        "onefold classify runs/tune 'a fine film'",
    )
)
def classify(
    model: ModelPath,
    given: Annotated[list[str], typer.Argument(metavar="PICTURE|TEXT…", help="Files of pictures, or texts")],
    top: Annotated[int, typer.Option(help="How many classes to name", min=1)] = 3,
    device: Device = "auto",
):
    """Say what is in pictures, or of which kind texts are."""
    from onefold.infer.writer import Writer

    loaded = open_model_at(model, device)
    if not hasattr(loaded, "best"):
        verb = "translate" if isinstance(loaded, Writer) else "embed"
        raise UserError(f"{model} classifies nothing: try onefold {verb} {model} TEXT")
    for thing, found in zip(given, loaded.best(given, top)):
        print(f"{thing}: " + ", ".join(f"{name} {share:.1%}" for name, share in found))


@app.command(epilog=example("onefold compare runs/a runs/b", "onefold compare runs/* --html compare.html"))
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of runs")],
    html: Annotated[Path | None, typer.Option(help="Also write a page with overlaid curves")] = None,
):
    """What differs between runs, and what came of it."""
    from onefold.study.pages.compare import compare as show_comparison

    show_comparison(*runs, html=html)


@app.command(
    epilog=example(
        "onefold average runs/transformer --last 5", "onefold average runs/a runs/b --last 1 --out runs/mean"
    )
)
def average(
    models: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Runs, or single checkpoints of them")],
    last: Annotated[int, typer.Option(help="How many of each run's newest checkpoints", min=1)] = 5,
    out: Annotated[Path | None, typer.Option(help="Where the mean goes (of one run: RUN/averaged)")] = None,
):
    """The mean of checkpoints' weights, which is often better than each of them."""
    from onefold.training.average import average_checkpoints

    average_checkpoints(models, last, out)


@app.command(
    epilog=example(
        "onefold export runs/quickstart out/ --format hf", "onefold export model.gguf out.gguf --format gguf"
    )
)
def export(
    model: ModelPath,
    to: Annotated[Path, typer.Argument(help="Folder or file to write")],
    format: Annotated[str, typer.Option(help="hf, onefold; gguf: text; timm, s4: pictures; esm: proteins")] = "hf",
):
    """Write a model in a published format."""
    from onefold.interop.open import open_model
    from onefold.interop.save import save

    unused(to)
    save(open_model(model), to, format)
    print(f"wrote {to}")


@app.command(epilog=example("onefold check mistral", "onefold check --all"))
def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[RECIPE]…")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every recipe; writes docs/landmarks.md")] = False,
):
    """Check a landmark: what must hold if it is implemented right, and what it shows in miniature."""
    from onefold.study.check import run_checks

    chosen = recipes.names() if all else names
    if not chosen:
        raise UserError(f"name a recipe to check, or --all; recipes: {', '.join(recipes.names())}")
    raise typer.Exit(run_checks({name: recipes.find(name).check for name in chosen}, publish=all))


@app.command(name="recipes", epilog=example("onefold recipes"))
def list_recipes():
    """List the recipes."""
    for name in recipes.names():
        print(name)


app.add_typer(text_verbs)  # without a name: its verbs stand beside those above
app.add_typer(adapting_verbs)
app.add_typer(blackbox_verbs)
app.add_typer(teaching_verbs)
app.add_typer(data_verbs, name="data")
app.add_typer(word_verbs, name="words")
app.add_typer(protein_verbs, name="proteins")

# How `onefold --help` groups them.
PANELS = {
    "Train": ("quickstart", "train", "recipes", "show", "compare", "average", "check"),
    "Adapt and teach": ("align", "merge", "calibrate", "tune", "teach", "self-instruct", "ghost", "select", "feedback"),
    "Write": ("generate", "chat", "translate", "serve"),
    "Understand": ("evaluate", "classify", "fill", "tag", "answer", "predict", "score", "embed"),
    "Data and formats": ("data", "words", "proteins", "export"),
}
_PANEL_OF = {verb: panel for panel, verbs in PANELS.items() for verb in verbs}
_beside = (text_verbs, adapting_verbs, blackbox_verbs, teaching_verbs)
for _verb in (*app.registered_commands, *(verb for part in _beside for verb in part.registered_commands)):
    _verb.rich_help_panel = _PANEL_OF[_verb.name or _verb.callback.__name__]
for _group in app.registered_groups:
    _group.rich_help_panel = _PANEL_OF.get(_group.name)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version")] = False):
    if version:
        from onefold import __version__

        print(f"onefold {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: what a user can mend is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except UserError as error:
        print(f"onefold: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
