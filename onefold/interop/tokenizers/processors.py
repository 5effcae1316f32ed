"""How a model reads what is given to it, beside its weights: a tokenizer, or what becomes of a picture."""

from pathlib import Path

from onefold.data.pictures.reader import PictureReader
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.tokenizers.tokens import load_tokenizer, save_tokenizer

Processor = Tokenizer | PictureReader


def load_processor(folder: Path) -> Processor | None:
    """What lies in a folder of ours; None when there is nothing of the kind."""
    return PictureReader.load(folder) or load_tokenizer(folder, {})


def save_processor(folder: Path, processor: Processor) -> None:
    """Write it into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(processor, Tokenizer):
        save_tokenizer(folder, processor)
    else:
        processor.save(folder)
