"""Writing a model in any of the formats that it fits."""

from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.interop.artifact import save_artifact
from onefold.interop.fair_esm import save_fair_esm
from onefold.interop.gguf.model import save_gguf
from onefold.interop.huggingface import save_folder
from onefold.interop.loaded import Loaded
from onefold.interop.sentence_transformers import save_sentences
from onefold.interop.vision.folder import save_vision


def save(loaded: Loaded, path: str | Path, format: str = "onefold", **options: Any) -> None:
    """Write our folder ("onefold"), one of Hugging Face's ("hf") or timm's ("timm"), or a .gguf file ("gguf").

    "hf" writes timm's folder where transformers does not know the architecture, and of an embedder that of
    sentence-transformers. options: `dtype=` other than the model's; `kind="F16"` of a .gguf file. Raises
    UserError for a format that cannot hold the model.
    """
    path, kind = Path(path), loaded.config.kind
    text = kind in ("decoder", "encoder", "embedder", "seq2seq")
    if format == "onefold":
        save_artifact(path, loaded.model, loaded.config, loaded.processor, loaded.card, **options)
    elif format == "hf":
        write = save_sentences if kind == "embedder" else save_folder if text else save_vision
        write(path, loaded, **options)
    elif format == "gguf" and kind == "decoder":
        save_gguf(path, loaded, **options)
    elif format == "esm" and kind == "encoder":
        save_fair_esm(path, loaded, **options)
    elif format == "timm" and not text:
        save_vision(path, loaded, library="timm", **options)
    else:
        two = "onefold or hf"
        formats = {"decoder": f"{two}, or gguf", "encoder": f"{two}, or esm", "embedder": two, "seq2seq": two}
        formats = formats.get(kind, f"{two}, or timm")
        raise UserError(f"no format named {format!r} for a model of kind {kind}; use {formats}")
