"""Writing a model in any of the formats that it fits."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from onefold.adapt.merge import is_adapted
from onefold.adapt.surgery import switch_of
from onefold.core.errors import UserError
from onefold.interop.adapted import plain
from onefold.interop.artifact import Picture, save_artifact
from onefold.interop.gguf.model import save_gguf
from onefold.interop.huggingface import save_folder
from onefold.interop.loaded import Loaded
from onefold.interop.makers.fair_esm import save_fair_esm
from onefold.interop.peft import save_peft
from onefold.interop.sentence_transformers import save_sentences
from onefold.interop.vision.folder import save_vision
from onefold.interop.vision.s4 import save_s4

# Published formats by the kind of model; kinds that are missing have none.
TEXTS: dict[str, dict[str, Callable[..., None]]] = {
    "decoder": {"hf": save_folder, "gguf": save_gguf},
    "encoder": {"hf": save_folder, "esm": save_fair_esm},
    "embedder": {"hf": save_sentences},
    "seq2seq": {"hf": save_folder},
}
PICTURES = {"s4": save_s4, "hf": save_vision, "timm": partial(save_vision, library="timm")}


def save(loaded: Loaded, path: str | Path, format: str = "onefold", **options: Any) -> None:
    """Write our folder ("onefold"), one of Hugging Face's ("hf"), timm's ("timm"), a .gguf file, fair-esm's ("esm"),
    or the .pt file of S4's authors ("s4").

    "hf" writes timm's folder where transformers does not know the architecture, and of an embedder that of
    sentence-transformers. options: `dtype=` other than the model's; `kind="F16"` of a .gguf file. Raises
    UserError for a format that cannot hold the model. Adapters are merged into the weights, of which this is a copy.
    """
    switch_of(loaded.model).unmerge()
    if format == "peft":
        save_peft(path, loaded)
        return
    loaded = plain(replace(loaded, model=deepcopy(loaded.model))) if is_adapted(loaded.model) else loaded
    path, kind = Path(path), loaded.config.kind
    if format == "onefold":
        save_artifact(path, loaded.model, loaded.config, loaded.processor, loaded.card, **options)
        return
    published = PICTURES if isinstance(loaded.config, Picture) else TEXTS.get(kind, {})
    if format not in published:
        raise UserError(
            f"no format named {format!r} for a model of kind {kind}; use {', '.join(['onefold', *published])}"
        )
    published[format](path, loaded, **options)
