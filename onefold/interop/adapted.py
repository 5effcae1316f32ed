"""A model on disk as what was trained beside another one: the artifact of an adapted run.

artifact.json says, beside what is said in any (artifact.py):

    adapt   the steps of surgery, in order
    base    where the model lies that they were done to, and a fingerprint of each of its weights

model.safetensors holds what was trained: adapters, and whatever the base has not or that was to be trained in full.

A base may be an adapted model itself, whose adapters are merged when it is opened. Another processor may round those
products otherwise, so such weights go by what they were computed from, the weight and the adapter in the files.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onefold.adapt.every import adapt, is_adapter, read_steps
from onefold.adapt.lora import NAME
from onefold.adapt.merge import is_adapted, merge
from onefold.adapt.quantize import QuantizeConfig
from onefold.adapt.surgery import matrices, switch_of
from onefold.core.config import Config, differences
from onefold.core.errors import UserError
from onefold.interop.artifact import FILE, load_processor, read_card, read_model_config
from onefold.interop.loaded import Loaded, dtype_named, fill
from onefold.interop.peft import is_peft, read_peft
from onefold.interop.table import own_buffers, own_weights
from onefold.interop.tensors import SafetensorFiles, check_written, find_safetensors

SAMPLES = 4096  # numbers of each weight that make its fingerprint


class Circle(UserError):
    """Models that adapt each other."""


class Unlike(UserError):
    """Another model than the one that was adapted; or that one, where its numbers were rounded to `dtype`."""

    def __init__(self, message: str, model: nn.Module):
        super().__init__(message)
        self.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self.rounded = self.dtype not in (torch.float32, torch.float64)


@dataclass(frozen=True)
class Base:
    """The model that was adapted: where it lies, and what it is recognised by."""

    path: str
    fingerprints: Mapping[str, str]

    @classmethod
    def of(cls, path: str | Path, loaded: Loaded, known: Mapping[str, str]) -> "Base":
        """`known`: fingerprints of weights that the model has no more."""
        place = Path(path).expanduser()
        prints = {name: fingerprint(weight) for name, weight in own_weights(loaded.model).items()}
        return cls(str(place.absolute()) if place.exists() else str(path), {**prints, **loaded.computed, **known})

    @classmethod
    def read(cls, content: Mapping[str, Any], folder: Path) -> "Base":
        """As the content of an artifact.json in `folder` has it. A base that was moved along with it is found."""
        told = content["base"]
        try:
            path, beside, prints = told["path"], folder / told["beside"], dict(told["fingerprints"])
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{folder / FILE} does not say which model it adapts") from None
        moved = not Path(path).exists() and beside.exists()
        return cls(os.path.normpath(beside) if moved else path, prints)

    def told(self, folder: Path) -> dict[str, Any]:
        """As an artifact in `folder` says it."""
        beside = os.path.relpath(self.path, folder.absolute())
        return {"path": self.path, "beside": beside, "fingerprints": dict(self.fingerprints)}

    def check(
        self, loaded: Loaded, where: str, there: str | None = None, known: Mapping[str, str] | None = None
    ) -> None:
        """Raises Unlike, naming the first weight that differs, unless `loaded` (which lies `there`) is this base.

        Weights of fewer bits are not looked at, but where their fingerprint is `known`.
        """
        model, other = loaded.model, f"{where} adapts another model than {there or self.path} is"
        prints = {name: fingerprint(weight) for name, weight in base_weights(model).items()} | dict(known or {})
        origins = {**prints, **loaded.computed}
        coarse = {f"{name}.weight" for name, module in model.named_modules() if hasattr(module, "scheme")}
        coarse = {name.replace(".base.", ".") for name in coarse} - {*origins}
        if unlike := sorted({*origins} ^ {*self.fingerprints} - coarse):
            has = "lacks" if unlike[0] in self.fingerprints else "has"
            raise Unlike(f"{other}, which {has} {unlike[0]}", model)
        for name, origin in origins.items():  # or the numbers themselves, by which all weights went once
            if self.fingerprints[name] not in (origin, prints.get(name)):
                raise Unlike(f"{other}: {name} differs", model)


def fingerprint(weight: Tensor) -> str:
    """A short hash of a weight's shape and of numbers spread evenly over it: all that another training changes."""
    flat = weight.detach().flatten()
    places = torch.linspace(0, len(flat) - 1, min(len(flat), SAMPLES), dtype=torch.float64).long()
    sample = flat[places.to(flat.device)].cpu().float().contiguous().numpy()
    return blake2b(repr(list(weight.shape)).encode() + sample.tobytes(), digest_size=8).hexdigest()


def origins(loaded: Loaded) -> dict[str, str]:
    """Hashes of what the weights would be made of that merging its adapter, or plain numbers, would make anew."""
    found = {}
    for matrix in matrices(loaded.model):
        layer, name = matrix.module, f"{matrix.name}.weight"
        base, loras = getattr(layer, "base", layer), getattr(layer, "loras", None) or []
        scheme = (base.scheme, base.block, base.double) if hasattr(base, "scheme") else None
        if not loras and scheme is None:
            continue
        own = loaded.computed.get(name) or fingerprint(base.weight if scheme is None else base.codes)
        parts = [(lora.rows, lora.scale, *map(fingerprint, lora.parameters())) for lora in loras]
        found[name] = blake2b(repr((own, scheme, parts)).encode(), digest_size=8).hexdigest()
    return found


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that lay there before surgery, by their names of then."""
    kept = {name: weight for name, weight in own_weights(model).items() if ".adapters." not in name}
    return {name.replace(".base.", "."): weight for name, weight in kept.items()}


class Early:
    """Quantises matrices while their model is being read, so that it never lies in memory as plain numbers.

    It is what `open_model` takes as `arrived`. What that does not call it for, the step does afterwards.
    """

    def __init__(self, steps: Sequence[Config]):
        self.step = steps[0] if steps and isinstance(steps[0], QuantizeConfig) else None
        self.names: set[str] | None = None
        self.fingerprints: dict[str, str] = {}  # of the weights that were quantised

    def __call__(self, model: nn.Module, name: str) -> None:
        if self.step is None:
            return
        if self.names is None:
            self.names = {*self.step.names(model)}
        if name in self.names:
            self.fingerprints[f"{name}.weight"] = fingerprint(model.get_submodule(name).weight)
            self.step.quantize(model, name)

    def plain(self, loaded: Loaded, where: str) -> Loaded:
        """As `plain`, but for what this has quantised."""
        return loaded if self.fingerprints else plain(loaded, where)


def plain(loaded: Loaded, where: str = "the model") -> Loaded:
    """The same model without surgery: adapters merged into its weights, those of fewer bits as plain numbers.

    The model given is used up. Errors: UserError when an adapter is not one that can be merged.
    """
    if not is_adapted(loaded.model):
        return loaded
    switch_of(loaded.model).unmerge()
    computed = {**loaded.computed, **origins(loaded)}
    try:
        return replace(loaded, model=merge(loaded.model), computed=computed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Of an adapted model, all that its base has not: what trains, and buffers that follow."""
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad} | own_buffers(model)


def load_adapted(
    folder: Path,
    content: Mapping[str, Any],
    device: torch.device,
    dtype: "str | torch.dtype | None",
    open_base: Callable[..., Loaded],
) -> Loaded:
    """Open an adapted artifact: `open_base(path, device, dtype)` its base, then the surgery, then what was trained.

    Raises UserError when the base is not there or another one, and as `load_artifact` does.
    """
    check_written(folder, every=True)
    config, steps = read_model_config(content, folder / FILE), read_steps(content.get("adapt"), folder / FILE)
    base = Base.read(content, folder)
    if Path(base.path).absolute() in folder.absolute().parents:
        raise UserError(f"{folder / FILE} names itself as the model that it adapts")
    kind = dtype_named(dtype)
    try:
        loaded = open_checked(base, folder, config, steps, None if device.type == "cpu" else "auto", open_base)
    except Unlike as error:
        if not error.rounded:
            raise
        loaded, kind = None, kind or error.dtype
    loaded = loaded or open_checked(base, folder, config, steps, torch.float32, open_base)
    source = SafetensorFiles(find_safetensors(folder) or [])
    model = begun(config, loaded, source, str(folder))
    coarse = [name for step in steps if isinstance(step, QuantizeConfig) for name in step.names(model)]
    computed = {f"{name}.weight": fingerprint(model.get_submodule(name).weight) for name in coarse} | loaded.computed
    whole = {name.replace(".base.", ".") for name in source}
    computed = {name: origin for name, origin in computed.items() if name not in whole}
    if kind is not None:
        model.to(kind)
    adapt(model, steps)
    if missing := sorted({*trained(model)} - {*source}):
        raise UserError(f"{folder}: {missing[0]} is missing")
    put(source, model, folder)
    card = {**content["card"], "adapts": base.path}
    card |= {name: loaded.card[name] for name in ("family", "generation") if name in loaded.card}  # of published ones
    return Loaded(config, model.to(device).eval(), load_processor(folder), card, computed)


def open_checked(
    base: Base,
    folder: Path,
    config: Config,
    steps: Sequence[Config],
    dtype: "str | torch.dtype | None",
    open_base: Callable[..., Loaded],
) -> Loaded:
    """The model that `folder` adapts by these steps into one of this config. Raises Unlike when another lies there."""
    try:
        early = Early(steps)
        loaded = early.plain(open_base(base.path, "cpu", dtype, arrived=early), base.path)
        if config != loaded.config and early.fingerprints:  # another model takes its weights as plain numbers
            early = Early(())
            loaded = plain(open_base(base.path, "cpu", dtype), base.path)
    except Circle:
        raise
    except UserError as error:
        raise UserError(f"{folder} adapts {base.path}: {error}") from None
    except RecursionError:
        raise Circle(f"{folder} adapts {base.path}, which adapts it in turn: no model lies at the end") from None
    loaded = replace(loaded, computed={**loaded.computed, **early.fingerprints})
    base.check(loaded, str(folder))
    return loaded


def recognise(loaded: Loaded, folder: Path) -> None:
    """Raises UserError unless the adapter in `folder` was made for this model; PEFT's does not say for which.

    Where a weight differs, it is an Unlike that names the first.
    """
    if is_peft(folder):
        return
    check_written(folder, every=True)
    content = read_card(folder)
    if "base" not in content:
        raise UserError(f"{folder} is a model of its own, no adapter")
    if unlike := differences(read_model_config(content, folder / FILE).to_dict(), loaded.config.to_dict()):
        raise UserError(f"{folder} adapts another model: {next(iter(unlike))} differs")
    Base.read(content, folder).check(loaded, str(folder), "this one")


def attach(loaded: Loaded, folder: Path, name: str, others: bool = True) -> None:
    """Add the adapter in `folder`, an artifact or PEFT's, to a model that is open; it becomes the active one.

    For which model it was made, `recognise` has seen. others: whether the model is to be had without it, too, and with
    others. Raises UserError for what is not an adapter alone then.
    """
    if is_peft(folder):
        step, tensors = read_peft(folder, loaded, name)
        if others and (whole := getattr(step, "also", ())):
            raise UserError(f"{folder} trained {whole[0]} in full beside its adapter: open it by itself")
        step.apply(loaded.model, name)
        put(tensors, loaded.model, folder)
        loaded.model.eval()
        return
    steps = read_steps(read_card(folder).get("adapt"), folder / FILE)
    if [step for step in steps if not is_adapter(step)] != switch_of(loaded.model).steps:
        raise UserError(f"{folder} was trained on weights of other bits than these: open it by itself")
    source = SafetensorFiles(find_safetensors(folder) or [])
    if whole := sorted(key for key in source if f".adapters.{NAME}." not in key):
        raise UserError(f"{folder} trained {whole[0]} in full beside its adapter: open it by itself")
    for step in filter(is_adapter, steps):
        step.apply(loaded.model, name)
    renamed = {key.replace(f".adapters.{NAME}.", f".adapters.{name}."): source[key] for key in source}
    put(renamed, loaded.model, folder)
    loaded.model.eval()


def begun(config: Config, base: Loaded, source: Mapping[str, Tensor], where: str) -> nn.Module:
    """The model of this config with the weights of `base`; what that has not is in `source`."""
    if config == base.config:
        return base.model
    with torch.device("meta"):
        blank = config.build()
    adopted = blank.adopt(own_weights(base.model))
    missing = sorted(name for name, tensor in adopted.items() if tensor.is_meta and name not in source)
    if missing:
        raise UserError(f"{where}: {missing[0]} is missing")
    weights = {name: source[name] if tensor.is_meta else tensor for name, tensor in adopted.items()}
    return fill(config, lambda names: weights, torch.device("cpu"), "auto", where)


@torch.no_grad()
def put(source: Mapping[str, Tensor], model: nn.Module, where: Path | str) -> None:
    """Copy what was trained into an adapted model."""
    targets, switch = own_weights(model), switch_of(model)
    switch.whole |= {name for name, _ in model.named_parameters() if name in source and ".adapters." not in name}
    for name in source:
        if name not in targets:
            raise UserError(f"{where}: {name} is not in the model")
        if targets[name].shape != source[name].shape:
            raise UserError(
                f"{where}: {name} is {list(source[name].shape)}, the model makes it {list(targets[name].shape)}"
            )
        targets[name].copy_(source[name])
