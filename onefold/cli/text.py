"""Verbs for models that read text both ways, or one text and write another: they stand beside those of cli/main.py."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from onefold.cli.common import Device, ModelPath, Settings, example, open_model_at, read_settings
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


@app.command(epilog=example("onefold tag runs/names 'Ada Lovelace saw Paris.'", "onefold tag runs/names notes.txt"))
def tag(
    model: ModelPath,
    text: Annotated[str, typer.Argument(help="Text, or a file of it")],
    words: Annotated[bool, typer.Option("--words", help="Every word with its tag, also where tags mark names")] = False,
    device: Device = "auto",
):
    """Find names and the like in a text, or say what each of its words is."""
    from onefold.infer.tags import entities, spell_entities

    loaded, text = _open_encoder(model, device, "tags no words"), _text_or_file(text)
    tags = loaded.tag([text])[0]
    if words or not spell_entities(loaded.classes):
        for found in tags:
            print(f"{found.word}\t{found.name}\t{found.share:.1%}")
        return
    named = entities(text, tags)
    for entity in named:
        print(f"{' '.join(entity.text.split())}\t{entity.kind}\t{entity.share:.1%}")
    if not named:
        print("nothing found", file=sys.stderr)


@app.command(
    epilog=example(
        "onefold answer runs/squad 'Who wrote it?' 'It was written by Ada in 1843.'",
        "onefold answer runs/squad 'Who wrote it?' notes.txt",
    )
)
def answer(
    model: ModelPath,
    question: Annotated[str, typer.Argument(help="A question")],
    context: Annotated[str, typer.Argument(help="The text that answers it, or a file of it, however long")],
    device: Device = "auto",
):
    """Find the passage of a text that answers a question."""
    loaded = _open_encoder(model, device, "finds no answers")
    found = loaded.answer(question, _text_or_file(context))
    if not found.text:
        print("no answer in this text", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{' '.join(found.text.split())}\t{found.share:.1%}\tcharacters {found.start} to {found.end}")


@app.command(epilog=example("onefold predict runs/ratings 'a fine film' 'too long by half'"))
def predict(
    model: ModelPath,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT…")],
    device: Device = "auto",
):
    """Give texts the numbers that a regression learned."""
    loaded = _open_encoder(model, device, "gives no numbers")
    for text, value in zip(texts, loaded.predict(texts).tolist()):
        print(f"{value:.4g}\t{text}")


@app.command(epilog=example("onefold score runs/reward 'Where is the key?' 'In the drawer.' 'Look for it.'"))
def score(
    model: ModelPath,
    prompt: Annotated[str, typer.Argument(help="What was asked")],
    answers: Annotated[list[str], typer.Argument(metavar="ANSWER…")],
    device: Device = "auto",
):
    """Let a reward model judge answers to a prompt, the best first: what counts are differences between its scores."""
    loaded = _open_encoder(model, device, "scores no answers")
    scores = loaded.score([prompt] * len(answers), answers).tolist()
    for value, answer in sorted(zip(scores, answers), reverse=True):
        print(f"{value:.4g}\t{answer}")


@app.command(
    epilog=example(
        "onefold embed all-MiniLM-L6-v2/ sentences.txt --out vectors.npy",
        "onefold embed runs/cpt functions.jsonl --column code --as document --out vectors.parquet",
        "onefold embed all-MiniLM-L6-v2/ 'a single text'",
    )
)
def embed(
    model: ModelPath,
    text: Annotated[str, typer.Argument(metavar="FILE|TEXT", help="A text a line, a table, or a text itself")],
    out: Annotated[Path | None, typer.Option(help="vectors.npy, .parquet or .jsonl")] = None,
    kind: Annotated[str | None, typer.Option("--as", help="What the texts are: query or document, say")] = None,
    column: Annotated[str | None, typer.Option(help="Of a table, which one holds the texts")] = None,
    device: Device = "auto",
):
    """Make vectors of texts, to search and compare them by."""
    import json

    from onefold.infer.embed_file import embed_file, is_file
    from onefold.infer.embedder import as_embedder

    loaded = as_embedder(open_model_at(model, device), model)
    if is_file(text):
        if out is None:
            raise UserError("say where the vectors go: --out vectors.npy, .parquet or .jsonl")
        count, width = embed_file(loaded, Path(text), out, kind, column)
        print(f"wrote {out}: {count:,} vectors of {width} numbers")
    elif out is not None:
        raise UserError(f"{text} is no file; without --out a single text's vector is printed")
    else:
        print(json.dumps([float(f"{x:.7g}") for x in loaded.embed([text], kind)[0].tolist()]))


@app.command(
    epilog=example(
        "onefold translate runs/de-en 'Ein Hund läuft durch den Schnee.'",
        "onefold translate runs/de-en/averaged test.de --out test.en",
        "onefold translate opus-mt-de-en/ test.de --out test.en beams=6 length_penalty=1",
    )
)
def translate(
    model: ModelPath,
    text: Annotated[str, typer.Argument(metavar="FILE|TEXT", help="A text a line, or a text itself")],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Where the translation of a file goes, line by line")] = None,
    batch: Annotated[int, typer.Option(help="Texts at once")] = 32,
    device: Device = "auto",
):
    """Write what a model makes of texts: translations, summaries. Four beams, unless settings say otherwise.

    The translation of a file that was interrupted goes on where it stopped.
    """
    from onefold.infer.translate import as_translator, translate_file
    from onefold.infer.translate import translate as translated

    loaded, options = as_translator(open_model_at(model, device), model), read_settings(settings)
    if (file := Path(text).expanduser()) and len(text) < 1024 and file.is_file():
        if out is None:
            raise UserError(f"say where the translation of {text} goes: --out FILE")
        translate_file(loaded, file, out, batch, **options)
    elif out is not None:
        raise UserError(f"{text} is no file; without --out a text's translation is printed")
    else:
        print(*translated(loaded, [text], batch, **options), sep="\n")


def _text_or_file(given: str) -> str:
    """What a file of this name holds, else the text itself."""
    try:
        path = Path(given).expanduser()
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else given
    except (OSError, ValueError, RuntimeError):  # too long for a name, or no name at all
        return given


def _open_encoder(path: str, device: str, otherwise: str):
    """The encoder at a path. Errors: UserError with what other models do not do."""
    from onefold.infer.text_encoder import TextEncoder

    loaded = open_model_at(path, device)
    if not isinstance(loaded, TextEncoder):
        raise UserError(f"{path} {otherwise}: that takes an encoder (BERT, RoBERTa, …)")
    return loaded
