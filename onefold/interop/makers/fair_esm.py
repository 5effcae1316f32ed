"""ESM's own checkpoints, one .pt file a model: ESM-1b, ESM-1v and ESM-2, both ways.

Beside NAME.pt, which has the encoder and its settings, lies NAME-contact-regression.pt with the contact head. Sources:
the loader and the modules of the package fair-esm 2.0. Tensors and plain settings are read, nothing else.
"""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.core.files import atomic_file
from onefold.data.proteins.alphabet import TOKENS, AminoAcids
from onefold.interop.families.encoders import Rolled
from onefold.interop.loaded import Loaded, fill
from onefold.interop.names import Joined, Names, Row
from onefold.interop.table import own_weights
from onefold.interop.tensors import read_pickled, read_settings
from onefold.models.embed import EmbedConfig, TokenDropoutConfig
from onefold.models.encoder import EncoderConfig, MaskedHeadConfig
from onefold.models.transformer import BlockConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import MLPConfig
from onefold.nn.norm import LayerNormConfig
from onefold.nn.position import LearnedPositionConfig, RotaryConfig

UNUSED = 2  # of their positions come before the first that a text uses
CONTEXT = 1024  # that ESM-2 is trained on; its files do not say
_LAYER = "layers.{i}."
NAMES = Names(
    rows=(
        Row("embed.token.weight", ("embed_tokens.weight",)),
        Row("embed.position.weight", ("embed_positions.weight",), Rolled(UNUSED)),
        Row("embed.norm.*", ("emb_layer_norm_before.*",)),
        Row("blocks.{i}.mixer.qkv.*", tuple(f"{_LAYER}self_attn.{x}_proj.*" for x in "qkv"), Joined(3)),
        Row("blocks.{i}.mixer.out.*", (f"{_LAYER}self_attn.out_proj.*",)),
        Row("blocks.{i}.mixer_norm.*", (f"{_LAYER}self_attn_layer_norm.*",)),
        Row("blocks.{i}.ffn.up.*", (f"{_LAYER}fc1.*",)),
        Row("blocks.{i}.ffn.out.*", (f"{_LAYER}fc2.*",)),
        Row("blocks.{i}.ffn_norm.*", (f"{_LAYER}final_layer_norm.*",)),
        Row("norm.*", ("emb_layer_norm_after.*",)),
        Row("transform.dense.*", ("lm_head.dense.*",)),
        Row("transform.norm.*", ("lm_head.layer_norm.*",)),
        Row("unembed.bias", ("lm_head.bias",)),
        Row("regression.*", ("contact_head.regression.*",)),
    ),
    ignorable=(r"lm_head\.weight", r".*rot_emb\.inv_freq", r".*version", r".*_float_tensor"),
    renamed=((r"^encoder\.(sentence_encoder\.)?", ""),),
)


def load_fair_esm(file: Path, device: "str | torch.device" = "cpu", dtype: "str | torch.dtype | None" = None) -> Loaded:
    """The encoder in a .pt file of ESM, with its contact head where that lies beside it.

    Raises UserError for other models (ESM-1, MSA Transformer, inverse folding) and for damaged or unsafe files.
    """
    where = str(file)
    tensors, content = read_settings(file)
    weights = {_plain(name): tensor for name, tensor in tensors.items()}
    beside = regression_file(file)
    if beside.is_file():
        weights |= read_pickled(beside)
    try:
        config = _config(weights, content, where)
    except (TypeError, ValueError, AttributeError):  # whatever settings of another kind than ESM's lead to
        raise UserError(f"{where}: its settings (args or cfg) are not those of an ESM") from None
    weights["embed_tokens.weight"] = _embedding(weights)
    model = fill(config, lambda names: NAMES.read(names, weights, where), torch.device(device), dtype, where)
    return Loaded(config, model, AminoAcids().build(), {"source": where, "format": "fair-esm", "family": "esm"})


def save_fair_esm(path: Path, loaded: Loaded) -> None:
    """Write `path` and its contact head beside it, as the package fair-esm opens them.

    That package tells ESM-2 by a file name that begins with esm2. Raises UserError for a model that is no ESM.
    """
    config, path = loaded.config, path if path.suffix == ".pt" else path.with_suffix(".pt")
    if problem := _misfit(loaded):
        raise UserError(f"this model is no ESM: it {problem}")
    settings: dict[str, Any] = {
        "encoder_layers": config.depth,
        "encoder_embed_dim": config.width,
        "encoder_ffn_embed_dim": config.block.ffn.width,
        "encoder_attention_heads": config.block.mixer.heads,
        "token_dropout": config.embed.token_dropout is not None,
    }
    rotary = config.embed.position is None
    written = NAMES.write({name: t.detach().cpu() for name, t in own_weights(loaded.model).items()})
    head = {name: written.pop(name) for name in list(written) if name.startswith("contact_head.")}
    written["lm_head.weight"] = written["embed_tokens.weight"].clone()  # else its mask's row would be zeroed
    if rotary:
        half = config.width // config.block.mixer.heads
        frequencies = 1.0 / config.block.mixer.position.theta ** (torch.arange(0, half, 2).float() / half)
        written |= {f"layers.{i}.self_attn.rot_emb.inv_freq": frequencies for i in range(config.depth)}
    stored = {
        f"encoder.{'' if name.startswith('lm_head.') else 'sentence_encoder.'}{name}": tensor.contiguous()
        for name, tensor in written.items()
    }
    if rotary:
        content = {"cfg": {"model": Namespace(arch="esm2", **settings)}, "model": stored}
    else:
        content = {"args": Namespace(arch="roberta_large", max_positions=config.context, **settings), "model": stored}
    _write(path, content)
    if head:
        _write(regression_file(path), {"model": {name: tensor.contiguous() for name, tensor in head.items()}})


def _embedding(weights: Mapping[str, Tensor]) -> Tensor:
    """The matrix that reads and tells tokens, as the package has it in the end.

    It zeroes the mask's vector, which token dropout never reads, and so that of the head, unless the head's is stored
    apart.
    """
    own, head = weights["embed_tokens.weight"], weights.get("lm_head.weight")
    if head is not None and head.data_ptr() != own.data_ptr():
        return head
    own = own.clone()
    if "embed_positions.weight" in weights:  # only with ESM-1b
        own[TOKENS.index("<mask>")] = 0
    return own


def regression_file(file: Path) -> Path:
    """Where the contact head of the model in `file` lies."""
    return file.with_name(f"{file.stem}-contact-regression.pt")


def _plain(name: str) -> str:
    return name.removeprefix("encoder.").removeprefix("sentence_encoder.")


def _config(weights: Mapping[str, Tensor], content: Mapping[str, Any], where: str) -> EncoderConfig:
    settings = content.get("args") or (content.get("cfg") or {}).get("model") or {}
    settings = vars(settings) if isinstance(settings, Namespace) else dict(settings)
    arch = settings.get("arch", settings.get("_name"))
    rotary = content.get("args") is None
    if "embed_tokens.weight" not in weights or not (rotary or arch == "roberta_large"):
        raise UserError(f"{where}: {arch or 'this'} is not supported; ESM-1b, ESM-1v and ESM-2 are")
    vocab, width = weights["embed_tokens.weight"].shape
    try:
        heads, depth = settings["encoder_attention_heads"], settings["encoder_layers"]
        ffn = len(weights["layers.0.fc1.weight"])
    except KeyError as missing:
        raise UserError(f"{where}: lacks {missing}") from None
    if vocab != len(TOKENS):
        raise UserError(f"{where}: a vocabulary of {vocab} tokens; ESM has {len(TOKENS)}")
    learned = None if rotary else len(weights["embed_positions.weight"]) - UNUSED
    return _described(
        shape=(width, depth, heads, ffn),
        learned=learned,
        normed="emb_layer_norm_before.weight" in weights,
        drops=bool(settings.get("token_dropout")),
        contacts="contact_head.regression.weight" in weights,
    )


def _described(
    shape: tuple[int, int, int, int], learned: int | None, normed: bool, drops: bool, contacts: bool
) -> EncoderConfig:
    """ESM of this (width, depth, heads, feed-forward); learned: how many positions, None where they are rotary."""
    width, depth, heads, ffn = shape
    norm = LayerNormConfig(eps=1e-5)
    position = RotaryConfig() if learned is None else None
    return EncoderConfig(
        vocab=len(TOKENS),
        width=width,
        depth=depth,
        context=learned or CONTEXT,
        embed=EmbedConfig(
            position=LearnedPositionConfig(context=learned + UNUSED) if learned else None,
            norm=norm if normed else None,
            token_dropout=TokenDropoutConfig(mask=TOKENS.index("<mask>")) if drops else None,
        ),
        block=BlockConfig(
            norm=norm,
            mixer=AttentionConfig(heads=heads, causal=False, bias=True, out_bias=True, position=position),
            ffn=MLPConfig(width=ffn),
        ),
        norm=norm,
        masked=MaskedHeadConfig(norm=norm),
        contacts=contacts,
    )


def _misfit(loaded: Loaded) -> str | None:
    """Why the package could not hold this model; None where it can."""
    config, vocabulary = loaded.config, loaded.tokenizer.vocabulary if loaded.tokenizer else None
    if vocabulary is not None and vocabulary != {token: i for i, token in enumerate(TOKENS)}:
        return "has another vocabulary"
    if not isinstance(config, EncoderConfig) or not isinstance(config.block.mixer, AttentionConfig):
        return "is another architecture"
    expected = _described(
        shape=(config.width, config.depth, config.block.mixer.heads, config.block.ffn.width),
        learned=config.context if config.embed.position else None,
        normed=config.embed.norm is not None,
        drops=config.embed.token_dropout is not None,
        contacts=config.contacts,
    )
    own, theirs = config.to_dict(), expected.to_dict()
    same = {"init", "context"}  # how it began, and how far rotary positions were trained, are not in their files
    different = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
    different = [name for name in different if name not in same]
    return f"differs in model.{different[0]}" if different else None


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        torch.save(content, temporary)
