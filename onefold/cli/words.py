"""`onefold words VERB …`: ask word vectors, judge them, and bring them from one format to another."""

from pathlib import Path
from typing import Annotated

import typer

from onefold.cli.common import example

app = typer.Typer(
    name="words",
    help="Neighbours and analogies of word vectors, how good they are, and their formats.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

VectorsPath = Annotated[
    str, typer.Argument(metavar="VECTORS", help="A run of word2vec or glove, or a file of either's format, also .gz")
]
Count = Annotated[int, typer.Option("--count", "-n", help="How many to show", min=1)]
Limit = Annotated[int | None, typer.Option(help="Read only the first so many words, mostly the frequent ones", min=1)]


@app.command(
    epilog=example(
        "onefold words neighbours runs/word2vec king", "onefold words neighbours glove.6B.50d.txt king queen"
    )
)
def neighbours(
    vectors: VectorsPath,
    words: Annotated[list[str], typer.Argument(metavar="WORD…")],
    count: Count = 10,
    limit: Limit = None,
):
    """The words nearest to words, by the cosine of their vectors."""
    from onefold.interop.words.word_vectors import load_vectors

    loaded = load_vectors(vectors, limit)
    for word in words:
        _print(word, loaded.neighbours(word, count))


@app.command(
    epilog=example("onefold words analogy GoogleNews-vectors-negative300.bin.gz king man woman --limit 200000")
)
def analogy(
    vectors: VectorsPath,
    word: Annotated[str, typer.Argument(help="king")],
    minus: Annotated[str, typer.Argument(help="man")],
    plus: Annotated[str, typer.Argument(help="woman")],
    count: Count = 10,
    limit: Limit = None,
):
    """What is to PLUS as WORD is to MINUS: king − man + woman."""
    from onefold.interop.words.word_vectors import load_vectors

    _print(f"{word} − {minus} + {plus}", load_vectors(vectors, limit).analogy(word, minus, plus, count))


@app.command(
    epilog=example(
        "onefold words evaluate runs/word2vec --analogies questions-words.txt",
        "onefold words evaluate vectors.bin --pairs wordsim353.tsv --among 30000",
    )
)
def evaluate(
    vectors: VectorsPath,
    analogies: Annotated[Path | None, typer.Option(help="Questions as Google's questions-words.txt has them")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Pairs with ratings, as WordSim has them")] = None,
    among: Annotated[int | None, typer.Option(help="Answer with the first so many words only", min=1)] = None,
    limit: Limit = None,
):
    """Accuracy on a file of analogies, rank correlation with a file of rated pairs."""
    from onefold.core.errors import UserError
    from onefold.infer.evaluation.word_vectors import evaluate_analogies, evaluate_pairs
    from onefold.interop.words.word_vectors import load_vectors

    if analogies is None and pairs is None:
        raise UserError("name what to evaluate on: --analogies FILE, --pairs FILE, or both")
    loaded = load_vectors(vectors, limit)
    if analogies is not None:
        found = evaluate_analogies(loaded, analogies, among)
        rows = [
            (
                s.name,
                "" if s.accuracy is None else f"{s.accuracy:.1%}",
                f"{s.right:,}",
                f"{s.asked:,}",
                f"{s.unknown:,}",
            )
            for s in [*found.sections, found.total]
        ]
        _table(("analogies", "accuracy", "right", "asked", "with unknown words"), rows)
    if pairs is not None:
        rated = evaluate_pairs(loaded, pairs)
        _table(
            ("pairs", "Spearman", "with unknown words"),
            [(f"{rated.pairs:,}", f"{rated.spearman:.3f}", f"{rated.unknown:,}")],
        )


@app.command(
    epilog=example(
        "onefold words convert runs/word2vec vectors.bin",
        "onefold words convert glove.6B.300d.txt glove.bin.gz --limit 100000",
        "onefold words convert vectors.bin vectors.txt --format glove",
    )
)
def convert(
    vectors: VectorsPath,
    to: Annotated[Path, typer.Argument(help="File (or, for onefold, folder) to write; .gz is compressed")],
    format: Annotated[str, typer.Option(help="word2vec (binary), text (word2vec's), glove, onefold")] = "word2vec",
    limit: Limit = None,
):
    """Write word vectors in another format, for gensim and others."""
    from onefold.interop.words.word_vectors import load_vectors, save_vectors

    save_vectors(load_vectors(vectors, limit), to, format)  # type: ignore[arg-type]
    print(f"wrote {to}")


def _print(title: str, found: list[tuple[str, float]]) -> None:
    _table((title, "cosine"), [(word, f"{cosine:.3f}") for word, cosine in found])


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
