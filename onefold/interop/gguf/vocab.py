"""The tokenizer inside a GGUF file, read and written: byte-level BPE ("gpt2") and SentencePiece BPE ("llama")."""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.tokenizers.vocabulary import CUTS, SAME_CUT, byte_level, cut_of, frame, mark_special, scored_pieces

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
# Where the file is silent, llama.cpp puts the beginning-of-text token before texts of these.
_FRAMED = ("llama-bpe", "tekken")
_ENDS = ("eos", "eot", "eom")


def read_tokenizer(values: Mapping[str, Any], where: str) -> Tokenizer | None:
    """The tokenizer that a GGUF file's values describe; None when they describe none.

    Raises UserError for kinds that we cannot rebuild exactly.
    """
    own = {key.removeprefix(_KEY): value for key, value in values.items() if key.startswith(_KEY)}
    kind = own.get("model", "no_vocab")
    if kind == "no_vocab":
        return None
    try:
        tokens = [str(token) for token in own["tokens"]]
        kinds = own.get("token_type") or [NORMAL] * len(tokens)
        if len(kinds) != len(tokens):
            raise UserError(f"{where}: {len(tokens)} tokens but {len(kinds)} token types")
        if kind == "gpt2":
            backend = _byte_level(own, tokens, where)
        elif kind == "llama":
            backend = _scored(own, tokens, kinds)
        else:
            raise UserError(f"{where}: tokenizers of the kind {kind!r} are not read; known are gpt2 and llama")
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(f"{where}: its tokenizer is incomplete or damaged ({error})") from None
    control = [token for token, k in zip(tokens, kinds) if k in (CONTROL, UNKNOWN)]
    mark_special(backend, control, [token for token, k in zip(tokens, kinds) if k == USER])
    defaults = {"bos": 1, "eos": 2} if kind == "llama" else {}
    ids = {name: _id(own, name, defaults.get(name), len(tokens)) for name in ("bos", "padding", *_ENDS)}
    cut = own.get("pre", "")
    framed = own.get("add_bos_token", kind == "llama" or SAME_CUT.get(cut, cut) in _FRAMED)
    before = tokens[ids["bos"]] if framed and ids["bos"] is not None else None
    after = tokens[ids["eos"]] if own.get("add_eos_token", False) and ids["eos"] is not None else None
    frame(backend, before, after)
    stops = [i for name in _ENDS if (i := ids[name]) is not None]
    return Tokenizer(backend, ids["bos"], ids["eos"], ids["padding"], values.get(_TEMPLATE), stops)


def write_tokenizer(tokenizer: Tokenizer, vocab: int, where: str) -> dict[str, Any]:
    """The values of a GGUF file for this tokenizer, filled up to the model's `vocab` with tokens never used.

    Raises UserError when llama.cpp has no tokenizer that cuts text in the same way.
    """
    backend = tokenizer.backend
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE":
        raise UserError(f"{where}: GGUF files are written with BPE tokenizers only, not {model['type']}")
    added = backend.get_added_tokens_decoder()
    by_id = {i: token for token, i in tokenizer.vocabulary.items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(vocab)]
    kinds = [NORMAL if i in by_id else UNUSED for i in range(vocab)]
    for i, token in added.items():
        kinds[i] = CONTROL if token.special else USER
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]
    if model.get("byte_fallback"):
        values = _write_scored(backend, tokens, kinds, merges, model.get("unk_token"), where)
    else:
        cut = _cut(backend, where)
        values = {"model": "gpt2", "pre": cut, "tokens": tokens, "token_type": kinds}
        values["merges"] = [" ".join(merge) for merge in merges]
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "padding": tokenizer.pad, "unknown": None}
    if model.get("unk_token") is not None:
        ids["unknown"] = backend.token_to_id(model["unk_token"])
    ids["eot"] = next((i for i in sorted(tokenizer.stops) if i != tokenizer.eos), None)
    values |= {f"{name}_token_id": i for name, i in ids.items() if i is not None}
    values["add_bos_token"] = tokenizer.bos is not None and tokenizer.prefix == [tokenizer.bos]
    values["add_eos_token"] = False
    template = {_TEMPLATE: tokenizer.chat_template} if tokenizer.chat_template else {}
    return {_KEY + name: value for name, value in values.items()} | template


def _byte_level(own: Mapping[str, Any], tokens: list[str], where: str) -> Backend:
    cut = own.get("pre", "default")
    if cut == "default":  # files older than the field; llama.cpp itself warns that its guess degrades them
        cut = "gpt-2"
    if SAME_CUT.get(cut, cut) not in CUTS:
        known = ", ".join(sorted({*CUTS, *SAME_CUT}))
        raise UserError(f"{where}: its tokenizer cuts words in the unknown way {cut!r}; known: {known}")
    # A merge is two tokens with a space between; the first may itself begin with one.
    merges = [(merge[: merge.index(" ", 1)], merge[merge.index(" ", 1) + 1 :]) for merge in own["merges"]]
    return byte_level({token: i for i, token in enumerate(tokens)}, merges, cut)


def _scored(own: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> Backend:
    unknown = own.get("unknown_token_id", 0)
    return scored_pieces(tokens, own["scores"], kinds, tokens[unknown], bool(own.get("add_space_prefix", True)))


def _write_scored(
    backend: Backend, tokens: list[str], kinds: list[int], merges: list[tuple], unknown: str | None, where: str
) -> dict[str, Any]:
    """Scores that rank pieces as the merges do. What no merge makes gets the lowest: it is found by other ways."""
    shown = backend.normalizer.normalize_str("a b") if backend.normalizer else "a b"
    if backend.pre_tokenizer:
        shown = "".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(shown))
    if shown not in (f"a{SPACE}b", f"{SPACE}a{SPACE}b"):
        raise UserError(f"{where}: this tokenizer rewrites text before cutting it, which llama.cpp does not")
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    lowest = -float(len(merges) + 1)
    for i, token in enumerate(tokens):
        if token == unknown:
            kinds[i] = UNKNOWN
        elif kinds[i] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[i] = BYTE
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [-float(ranks[token]) if token in ranks else lowest for token in tokens],
        "token_type": kinds,
        "add_space_prefix": shown.startswith(SPACE),
    }


def _cut(backend: Backend, where: str) -> str:
    cut = cut_of(backend)
    if cut is None:
        raise UserError(f"{where}: llama.cpp has no name for how this tokenizer cuts text into words")
    if backend.normalizer is not None and backend.normalizer.normalize_str("É  ﬁ\n") != "É  ﬁ\n":
        raise UserError(f"{where}: this tokenizer rewrites text before cutting it, which llama.cpp does not")
    return cut


def _id(own: Mapping[str, Any], name: str, default: int | None, size: int) -> int | None:
    i = own.get(f"{name}_token_id", default)
    return i if isinstance(i, int) and 0 <= i < size else None
