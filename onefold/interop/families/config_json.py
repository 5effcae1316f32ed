"""config.json of a published model, read as our config and written from it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from onefold.core.config import differences, explain
from onefold.core.errors import UserError
from onefold.interop.families.decoders import FAMILIES
from onefold.interop.families.family import Family, Keys
from onefold.models.encoder import EncoderConfig
from onefold.models.seq2seq import Seq2SeqConfig
from onefold.models.transformer import DecoderConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.sparse.experts import ExpertsConfig

TextConfig = DecoderConfig | EncoderConfig | Seq2SeqConfig
_HEAD = re.compile(r"(For[A-Z]\w*|LMHeadModel|MTModel|Model)$")


def says_family(data: Mapping[str, Any]) -> bool:
    """Whether a config.json names what it configures; those of 2019 leave it to whoever opens them."""
    return bool(data.get("model_type") or data.get("architectures"))


def family_of(data: Mapping[str, Any], where: str, tensors: Iterable[str] = ()) -> Family:
    """The family of a config.json. Raises UserError, naming the known ones, where it is none of them.

    tensors: the names of those beside it, by which older files are told.
    """
    family: Family | None = FAMILIES.get(str(data.get("model_type")))
    if family is None and "model_type" not in data:  # older files: by the name of the class, whatever its head
        named = {_HEAD.sub("", str(name)) for name in data.get("architectures") or []}
        family = next((f for f in FAMILIES.values() if _HEAD.sub("", f.architecture) in named), None)
    if family is None and not says_family(data):
        first = {name.partition(".")[0] for name in tensors}
        alone = "bert" if {"embeddings", "encoder", "pooler"} <= first else None  # without the head that says more
        family = FAMILIES.get(next((name for name in FAMILIES if name in first), alone or ""))
    if family is None:
        shown = data.get("model_type") or ", ".join(data.get("architectures") or []) or "nothing"
        raise UserError(f"{where}: the architecture {shown!r} is not supported; supported are {', '.join(FAMILIES)}")
    if data.get("quantization_config"):
        raise UserError(f"{where}: quantized weights are only read from GGUF files; use the original model")
    return family


def read_config(
    data: Mapping[str, Any], where: str, tensors: Iterable[str] = ()
) -> tuple[Family, TextConfig, list[str]]:
    """The family and our config of a config.json, and the keys in it that are not understood.

    tensors: the names of those beside it, which tell what older files leave unsaid.
    Raises UserError for an unknown architecture (naming the known ones) and for settings that we have no model for.
    """
    keys = Keys(data, where, tensors)
    family = family_of(data, where, keys.tensors)
    try:
        return family, family.read(keys), keys.unknown()
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, data)}") from None
    except (TypeError, AttributeError):
        raise UserError(f"{where}: a setting has the wrong type for {family.name}") from None


def write_config(config: TextConfig, prefer: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The first family (`prefer` before all) whose config.json can say exactly this, and that file's content.

    Found by writing and reading back. Raises UserError naming what the nearest family cannot say.
    """
    order = [FAMILIES[prefer]] if prefer and prefer in FAMILIES else []
    order += [family for family in FAMILIES.values() if family.name != prefer]
    meant, nearest = canonical(config), None
    for family in order:
        try:
            written = {"architectures": [family.architecture], "model_type": family.name} | family.write(config)
            said = canonical(family.read(Keys(written, family.name)))
        except (AttributeError, KeyError, UserError, ValueError):  # a slot holds what this family has no name for
            continue
        lost = differences(meant, said)
        if not lost:
            return family, written
        if nearest is None or len(lost) < len(nearest[1]):
            nearest = family.name, lost
    if nearest is None:
        raise UserError("no published family has this model's parts; save it with format='onefold'")
    path, (ours, theirs) = next(iter(nearest[1].items()))
    raise UserError(
        f"no published family can say this model: nearest is {nearest[0]}, but {path} is {ours}, not {theirs}; "
        "save it with format='onefold'"
    )


def canonical(config: TextConfig) -> dict[str, Any]:
    """What a config computes, as plain values: layers spelled out, defaults resolved, initialisation and losses of
    routers left out."""
    if isinstance(config, Seq2SeqConfig):
        encoder, decoder = (half and canonical(half) for half in config.halves())
        decoder["head_bias"] = None  # is told by the tensors, and the first tokens by the tokenizer where not here
        unsaid = {"init": None, "head_bias": None, "start": None}
        return config.to_dict() | unsaid | {"encoder": encoder, "decoder": decoder}
    plain = config.to_dict() | {"block": None, "pattern": None, "init": None}
    for i, block in enumerate(config.blocks()):
        resolved = {}
        for slot in ("mixer", "cross") if block.cross else ("mixer",):
            if isinstance(attention := getattr(block, slot), AttentionConfig):
                _, kv_heads, head_width = attention.widths(config.width)
                resolved[slot] = {"kv_heads": kv_heads, "head_width": head_width}
        if isinstance(block.ffn, ExpertsConfig):
            block = block.model_copy(update={"ffn": block.ffn.reading()})
        plain[f"layer {i}"] = block.but(resolved).to_dict()
    return plain
