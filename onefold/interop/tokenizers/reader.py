"""How a model reads text, without its weights."""

import json
from pathlib import Path

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.gguf.container import open_container
from onefold.interop.gguf.vocab import read_tokenizer
from onefold.interop.open import CHECKPOINTS, checkpoints, open_model
from onefold.interop.tokenizers.tokens import load_tokenizer


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of whatever `open_model` opens, or of a folder that holds nothing else.

    Its weights are read only where the tokenizer cannot be found without. Raises UserError where there is none.
    """
    place = Path(path).expanduser()
    found = None
    if place.suffix == ".gguf" and place.is_file():
        found = read_tokenizer(open_container(place).metadata, str(place))
    elif place.is_dir():
        folder = next(checkpoints(place), place) if (place / CHECKPOINTS).is_dir() else place
        config = folder / "config.json"
        found = load_tokenizer(folder, json.loads(config.read_text()) if config.is_file() else {})
    if found is None:
        found = open_model(path).tokenizer
    if found is None:
        raise UserError(f"{path} has no tokenizer: it reads no text, or its tokenizer lies elsewhere")
    return found
