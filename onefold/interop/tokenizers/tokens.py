"""A tokenizer beside a model: read with it, written with it, and never larger than its vocabulary."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.models.transformer import DecoderConfig

_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")


def load_tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer in a folder, told by `config` (a config.json) which ids end a text; None when there is none."""
    if not any((folder / name).is_file() for name in _FILES):
        return None
    tokenizer = Tokenizer.load(folder)
    ends = config.get("eos_token_id")
    return with_stops(tokenizer, [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)])


def with_stops(tokenizer: Tokenizer, stops: list[int]) -> Tokenizer:
    """The same tokenizer with further ids that end a turn; the first one ends a text if nothing else does."""
    if not stops:
        return tokenizer
    eos = stops[0] if tokenizer.eos is None else tokenizer.eos
    stops = [*stops, *tokenizer.stops]
    return Tokenizer(tokenizer.backend, tokenizer.bos, eos, tokenizer.pad, tokenizer.chat_template, stops)


def save_tokenizer(folder: Path, tokenizer: Tokenizer, generation: Mapping[str, Any] | None = None) -> None:
    """tokenizer.json, tokenizer_config.json, and generation_config.json with all ids that end a turn."""
    tokenizer.save(folder)
    settings = {**(generation or {}), **token_ids(tokenizer)}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """bos, eos (a list where several ids end a turn, the end of a text first) and pad, as config files name them."""
    stops = sorted(tokenizer.stops, key=lambda i: (i != tokenizer.eos, i))
    ids = {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": stops if len(stops) > 1 else tokenizer.eos,
        "pad_token_id": tokenizer.pad,
    }
    return {name: value for name, value in ids.items() if value is not None}


def check_vocabulary(tokenizer: Tokenizer | None, config: DecoderConfig, where: str) -> None:
    """A tokenizer may have fewer tokens than the model (padded embeddings), never more."""
    vocab = getattr(config, "trunk", config).vocab
    if tokenizer is not None and tokenizer.size > vocab:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.size} tokens, the model's vocabulary only {vocab}; "
            "they do not belong together"
        )
