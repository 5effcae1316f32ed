"""Adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors, both ways.

What a matrix is called there, and which of our rows are in it, peft_places.py tells. So GPT-2's `c_attn` is one adapter
over all of our `qkv`, Llama's `q_proj` one over the rows of its part `q`. Parameters that were trained in full beside
it (modules_to_save, biases) are read, too, and so are adapters of routers, as routers that were trained in full.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from onefold.adapt.every import AnyAdapt
from onefold.adapt.lora import LoRA, LoRAConfig
from onefold.adapt.prompts import PrefixTuningConfig, Prompt, PromptTuningConfig
from onefold.adapt.surgery import fits, matrices, switch_of
from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.interop.families.config_json import write_config
from onefold.interop.huggingface import read_json
from onefold.interop.loaded import Loaded
from onefold.interop.peft_places import Place, places, published, stacked, wrapped
from onefold.interop.table import own_weights
from onefold.interop.tensors import SafetensorFiles, read_pickled

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
PREFIX = "base_model.model."
TYPES = ("LORA", "PROMPT_TUNING", "PREFIX_TUNING")
TASKS = {"decoder": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
KINDS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
THEIRS = {suffix: kind for suffix, kind in KINDS.items() if suffix != ".lora_magnitude_vector.weight"}
# Settings that would change what is computed; they must say nothing.
UNKNOWN = """lora_bias use_qalora layer_replication trainable_token_indices use_bdlora
alora_invocation_tokens arrow_config kasa_config velora_config monteclora_config"""


REWRITES = ("pissa", "olora", "corda", "lora_ga")  # ways to begin that take something off the base


def is_peft(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The model that the adapter in `folder` says it was made for."""
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{folder / CONFIG} names no base model: open the base, and give this as an adapter of it")
    return name


def read_peft(folder: Path, base: Loaded, name: str) -> tuple[AnyAdapt, dict[str, Tensor]]:
    """The surgery that an adapter in `folder` asks of `base`, and its tensors as they are called after it by `name`.

    Raises UserError for other kinds of adapters, for settings without a counterpart here, and naming the first tensor
    that the base has no place for.
    """
    told, where = read_json(folder / CONFIG), folder / CONFIG
    if told.get("peft_type") in ("PROMPT_TUNING", "PREFIX_TUNING"):
        return _read_opening(folder, told["peft_type"], base, name)
    if told.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {told.get('peft_type')!r} is not supported (only {', '.join(TYPES)})")
    begun = str(told.get("init_lora_weights")).lower()
    if begun.startswith(REWRITES):
        raise UserError(f"{where}: init_lora_weights={begun} changes the base, too: make it plain LoRA with PEFT")
    unknown = [setting for setting in UNKNOWN.split() if told.get(setting)]
    if unknown:
        raise UserError(f"{where}: {unknown[0]}={told[unknown[0]]!r} is not supported")
    found, routers, others = _by_module(folder, base, told.get("target_parameters") or ())
    alpha_of = partial(_matching, told.get("alpha_pattern"), otherwise=told.get("lora_alpha", 8))
    for module, held in routers.items():
        scale = LoRAConfig(rslora=bool(told.get("use_rslora"))).scale(len(held["a"]), float(alpha_of(module)))
        others[f"{module}.weight"] = held["weight"] + scale * held["b"] @ held["a"]
    paths = {place.matrix.name: place.matrix.path for place, _ in found.values()}
    tensors = _in_full(others, base, paths, bool(told.get("ensure_weight_tying")), folder)
    whole = tuple(tensors)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    each: dict[str, tuple[Place, dict[int, Tensor]]] = {}  # of experts one by one, whose matrices are one of ours
    for module, (place, held) in found.items():
        own, alpha = place.own, alpha_of(module)
        rank = len(held["a"]) // (place.matrix.experts if place.stacked else 1)
        if (ranks.setdefault(own, rank), alphas.setdefault(own, alpha)) != (rank, alpha):
            raise UserError(f"{folder}: experts of {own} have adapters of several ranks or scales")
        for kind, tensor in held.items():
            tensor = place.unstacked(kind, tensor) if place.stacked else tensor
            if kind != "a":  # theirs has a row for each of the matrix's, in their order
                dim = 1 if place.stacked else 0
                tensor = torch.empty_like(tensor).index_copy_(dim, place.rows - place.first, tensor)
            path = f"{place.matrix.path}.adapters.{name}.{place.part}.{kind}"
            if place.expert is None:
                tensors[path] = tensor
            else:
                each.setdefault(path, (place, {}))[1][place.expert] = tensor
    for path, (place, of) in each.items():
        if len(of) < (count := place.matrix.experts):
            raise UserError(f"{folder} adapts {len(of)} of the {count} experts of {place.own}, not all")
        tensors[path] = torch.stack([of[expert] for expert in range(count)])
    (rank, _), (alpha, _) = (Counter(values.values()).most_common(1)[0] for values in (ranks, alphas))
    config = LoRAConfig.from_dict(
        {
            "rank": rank,
            "alpha": alpha,
            "rslora": bool(told.get("use_rslora")),
            "dora": bool(told.get("use_dora")),
            "dropout": told.get("lora_dropout") or 0.0,
            "targets": _patterns(ranks, base.model),
            "ranks": {own: other for own, other in ranks.items() if other != rank},
            "alphas": {own: other for own, other in alphas.items() if other != alpha},
            "also": whole,
        }
    )
    return config, tensors


def _in_full(
    given: dict[str, Tensor], base: Loaded, adapted: Mapping[str, str], tied: bool, folder: Path
) -> dict[str, Tensor]:
    """What was trained without an adapter (modules_to_save, biases): our parameters that it makes, as they are called
    when the matrices of `adapted`, name → path, have theirs. tied: the head was trained with the embedding.

    Errors: UserError for what the base has no place for, or in another shape.
    """
    left, found = dict(given), {}
    family, _ = write_config(base.config, prefer=base.card.get("family"))
    for name, weight in own_weights(base.model).items() if left else ():
        if ".adapters." in name:
            continue
        theirs = family.table.write(base.config, {name.replace(".base.", "."): weight})
        new = {key: tensor for key in theirs if (tensor := left.pop(key, None)) is not None}
        for key, tensor in new.items():
            if tensor.shape != theirs[key].shape:
                told = f"{key} is {list(tensor.shape)}, this one has {list(theirs[key].shape)}"
                raise UserError(f"{folder} adapts another model, or one whose vocabulary was changed before: {told}")
        if not new:
            continue
        head = getattr(base.config, "tied", getattr(base.config, "masked", None))  # is the same matrix
        if name == "embed.token.weight" and head and not tied:
            raise UserError(f"{folder} trained the embedding without the head, which this model has as one matrix")
        name, _, leaf = name.rpartition(".")
        path = f"{adapted[name]}.base.{leaf}" if name in adapted else f"{name}.{leaf}"
        plain = f"{name}.{leaf}".replace(".base.", ".")
        found[path] = family.table.read(base.config, [plain], {**theirs, **new}, str(folder))[plain]
    if left:
        raise UserError(f"{folder}: does not know what to do with {next(iter(left))}")
    return found


def _read_opening(folder: Path, kind: str, base: Loaded, name: str) -> tuple[AnyAdapt, dict[str, Tensor]]:
    tensor = _tensors(folder).get("prompt_embeddings")
    if tensor is None or tensor.ndim != 2:
        raise UserError(f"{folder} has no prompt_embeddings")
    _, kv_heads, width = base.config.block.mixer.widths(base.config.width)
    wanted = base.config.width if kind == "PROMPT_TUNING" else base.config.depth * 2 * kv_heads * width
    if tensor.shape[1] != wanted:
        told = f"prompt_embeddings is {list(tensor.shape)}, this one is {wanted} wide there"
        raise UserError(f"{folder} adapts another model: {told}")
    if kind == "PROMPT_TUNING":
        return PromptTuningConfig(length=len(tensor)), {f"openings.adapters.{name}.vectors": tensor}
    pairs = tensor.view(len(tensor), base.config.depth, 2, kv_heads, width).permute(1, 2, 3, 0, 4)
    return PrefixTuningConfig(length=len(tensor)), {f"openings.adapters.{name}.pairs": pairs}


def _opening(loaded: Loaded, opening: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What PEFT's files say of vectors before the text."""
    heads, kv_heads, width = loaded.config.block.mixer.widths(loaded.config.width)
    told = {"num_layers": loaded.config.depth, "num_transformer_submodules": 1}
    if isinstance(opening, Prompt):
        vectors = opening.vectors
        told |= {"peft_type": "PROMPT_TUNING", "token_dim": loaded.config.width, "num_attention_heads": heads}
    else:
        vectors = opening.pairs.permute(3, 0, 1, 2, 4).flatten(1)
        told |= {"peft_type": "PREFIX_TUNING", "token_dim": kv_heads * width, "num_attention_heads": kv_heads}
    return told | {"num_virtual_tokens": len(vectors)}, {"prompt_embeddings": vectors}


def save_peft(folder: Path, loaded: Loaded) -> None:
    """Write the active adapter of a model as a folder that PEFT opens.

    Where several of ours lie in one of their matrices, they become one whose rank is the sum. Raises UserError when
    there is no adapter, and when the base is of no published family.
    """
    name = switch_of(loaded.model).active
    if name is None:
        raise UserError("the model has no adapter to write")
    if whole := sorted(switch_of(loaded.model).whole):
        raise UserError(f"{whole[0]} was trained in full, which PEFT's folder cannot say: use format='hf'")
    common = {
        "task_type": TASKS.get(loaded.config.kind),
        "base_model_name_or_path": loaded.card.get("adapts"),
        "inference_mode": True,
    }
    if name in getattr(getattr(loaded.model, "openings", None), "adapters", ()):
        told, tensors = _opening(loaded, loaded.model.openings.adapters[name])
        _write(Path(folder), common | told, tensors)
        return
    tensors, ranks, alphas, turned, dora = {}, {}, {}, False, False
    known = places(loaded)
    stacks = {place.matrix.name for place in known.values() if place.stacked}
    active = {}
    for module, place in known.items():
        loras = [lora for lora in getattr(place.matrix.module, "loras", None) or () if _overlap(lora, place)]
        if loras and not (place.expert is not None and place.matrix.name in stacks):  # those are in the stack
            active[module] = loras
    called = wrapped(active, known)
    for module, loras in active.items():
        place = known[module]
        a, b, magnitude, scale = _joined(loras, place, place.matrix.module.base)
        if place.stacked and magnitude is not None:
            raise UserError(f"PEFT has no DoRA of {module}: use format='hf', or LoRA without dora")
        rank = a.shape[-2]
        kept = {"a": a, "b": b} if magnitude is None else {"a": a, "b": b, "magnitude": magnitude}
        for suffix, kind in THEIRS.items():
            if kind in kept:
                tensor = stacked(kind, kept[kind]) if place.stacked else kept[kind]
                tensors[f"{PREFIX}{called[module]}{suffix}"] = tensor
        ranks[module], alphas[module] = rank, round(scale * rank, 9)
        turned, dora = turned or place.turned, dora or magnitude is not None
    if not tensors:
        raise UserError(f"the adapter {name!r} has nothing that this format holds")
    (rank, _), (alpha, _) = (Counter(values.values()).most_common(1)[0] for values in (ranks, alphas))
    told = {
        "peft_type": "LORA",
        **common,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "use_dora": dora,
        "use_rslora": False,
        "fan_in_fan_out": turned,
        "bias": "none",
        "target_modules": sorted(module for module in ranks if not known[module].stacked),
        **({"target_parameters": sorted(targets)} if (targets := [m for m in ranks if known[m].stacked]) else {}),
        "rank_pattern": {module: other for module, other in ranks.items() if other != rank},
        "alpha_pattern": {module: other for module, other in alphas.items() if other != alpha},
    }
    _write(Path(folder), told, tensors)


def _write(folder: Path, told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(told, indent=2) + "\n")
        save_file(
            {key: t.detach().cpu().contiguous() for key, t in tensors.items()}, temporary / f"{WEIGHTS}.safetensors"
        )


@torch.no_grad()
def _joined(loras: list[LoRA], place: Place, base: nn.Module) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """A, B, magnitude and scale of the one adapter that does to their matrix what these do to ours."""
    scale, rows = loras[0].scale, place.rows.to(loras[0].b.device)
    which = ... if place.expert is None else place.expert  # of the experts
    a = torch.cat([lora.a[which] for lora in loras], -2)
    b, column = a.new_zeros(*a.shape[:-2], len(rows), a.shape[-2]), 0
    norms = base.dense()[which][..., rows, :].to(a.dtype).norm(dim=-1) if loras[0].magnitude is not None else None
    for lora in loras:
        inside = (rows >= lora.rows.start) & (rows < lora.rows.stop)
        own = rows[inside] - lora.rows.start
        b[..., inside, column : column + lora.rank] = lora.b[which][..., own, :] * (lora.scale / scale)
        if norms is not None:
            norms[..., inside] = lora.magnitude[which][..., own]
        column += lora.rank
    return a, b, norms, scale


def _overlap(lora: LoRA, place: Place) -> bool:
    return bool(((place.rows >= lora.rows.start) & (place.rows < lora.rows.stop)).any())


def _by_module(folder: Path, base: Loaded, targets: Iterable[str]) -> tuple[dict, dict, dict]:
    """Their module → its place in `base`, and what the file has for it: "a", "b", "magnitude"; routers → the same, with
    the router's own "weight"; and what else it has. targets: experts' tensors that are adapted."""
    known, routers = places(base), _routers(base)
    found: dict[str, tuple[Place, dict[str, Tensor]]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in _tensors(folder).items():
        suffix = next((suffix for suffix in KINDS if name.endswith(suffix)), None)
        if suffix is None:
            others[name.removeprefix(PREFIX).replace(".base_layer.", ".")] = tensor
            continue
        module = published(name.removeprefix(PREFIX).removesuffix(suffix), known, targets)
        if module in known:
            place, held = found.setdefault(module, (known[module], {}))
            inward, outward = place.matrix.module.in_features, len(place.rows)
        elif (router := re.sub(r"\.mlp\.gate$", ".block_sparse_moe.gate", module)) in routers:
            held = routers[router]
            outward, inward = held["weight"].shape
        else:
            raise UserError(f"{folder} adapts another model: this one has no matrix {module}")
        kind = KINDS[suffix]
        wanted, axis = (inward, 1) if kind == "a" else (outward, 0)
        if tensor.ndim != (1 if kind == "magnitude" else 2) or tensor.shape[axis] != wanted:
            raise UserError(
                f"{folder} adapts another model: {name} is {list(tensor.shape)}, this one is {wanted} wide there"
            )
        held[kind] = tensor
    routers = {module: held for module, held in routers.items() if len(held) > 1}
    if decomposed := [module for module, held in routers.items() if "magnitude" in held]:
        raise UserError(f"{folder} has DoRA beside {decomposed[0]}, a router: merge it with PEFT")
    for module, held in [*routers.items(), *((module, held) for module, (_, held) in found.items())]:
        count = found[module][0].matrix.experts if module in found and found[module][0].stacked else 1
        if not {"a", "b"} <= {*held} or held["a"].shape[0] != held["b"].shape[1] or held["a"].shape[0] % count:
            raise UserError(f"{folder}: lora_A and lora_B of {module} do not fit each other")
    if not found:
        raise UserError(f"{folder} holds no adapter")
    return found, routers, others


def _routers(base: Loaded) -> dict[str, dict[str, Tensor]]:
    """The matrices of routers, which are no linear layers of ours, by the names of their published modules."""
    family, _ = write_config(base.config, prefer=base.card.get("family"))
    own = {name: weight for name, weight in own_weights(base.model).items() if name.endswith(".router.weight")}
    written = family.table.write(base.config, own) if own else {}
    return {name.removesuffix(".weight"): {"weight": weight} for name, weight in written.items()}


def _patterns(wanted: Iterable[str], model: nn.Module) -> list[str]:
    """Names as patterns, those that all layers have without their layers."""
    known = {name for matrix in matrices(model) for name in (matrix.name, *matrix.names())}
    wanted, patterns = dict.fromkeys(wanted), []
    for name in wanted:
        short = re.sub(r"^.*\.\d+\.", "", name)
        means = {other for other in known if fits(other, short)}
        patterns.append(short if means <= {*wanted} else name)
    return list(dict.fromkeys(patterns))


def _matching(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        pattern = pattern.removeprefix(r".*\.")  # as PEFT writes it itself
        if not re.fullmatch(r"\^?[\w.]+", pattern):  # a file's expression may take forever
            raise UserError(f"{CONFIG}: {pattern!r} is a regular expression; write the names of the modules out")
        if module == pattern.removeprefix("^") or module.endswith(f".{pattern}"):
            return value
    return otherwise


def _tensors(folder: Path) -> Mapping[str, Tensor]:
    if (file := folder / f"{WEIGHTS}.safetensors").is_file():
        return SafetensorFiles([file])
    if (file := folder / f"{WEIGHTS}.bin").is_file():
        return read_pickled(file)
    raise UserError(f"{folder} has no weights: neither {WEIGHTS}.safetensors nor {WEIGHTS}.bin")
