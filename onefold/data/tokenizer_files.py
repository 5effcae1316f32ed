"""Finding and reading a tokenizer among the files in which published models carry one."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from onefold.core.errors import UserError
from onefold.data.sentencepiece import read_sentencepiece

_NAMES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def load(path: Path) -> dict[str, Any]:
    """The arguments of `Tokenizer` for a tokenizer file or the folder that holds one.

    Raises UserError when nothing there is a tokenizer, or the file is damaged.
    """
    file = _find(path)
    settings = _settings(file.parent)
    roles: dict[str, str | None] = {}
    if file.suffix == ".model":
        backend, roles = read_sentencepiece(file)
    elif file.name.endswith("vocab.json"):
        backend = _vocab_and_merges(file)
        roles = dict.fromkeys(
            ("bos", "eos"), "<|endoftext|>" if backend.token_to_id("<|endoftext|>") is not None else None
        )
    else:
        backend = _tokenizer_json(file)
    _add_tokens(backend, file.parent, settings)
    for role in ("bos", "eos", "pad"):
        if f"{role}_token" in settings:
            roles[role] = _content(settings[f"{role}_token"])
    _frame(backend, settings, roles)
    return {
        "backend": backend,
        **roles,
        "chat_template": _template(file.parent, settings),
        "stops": _stops(file.parent),
    }


def _find(path: Path) -> Path:
    if path.is_file():
        if path.suffix == ".gguf":
            raise UserError(f"{path} holds a whole model with its tokenizer: open it with onefold.load")
        if path.name == "merges.txt":
            return path.with_name("vocab.json")
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist: give a tokenizer file or a folder with one")
    found = next((path / name for name in _NAMES if (path / name).is_file()), None)
    if found is None:
        raise UserError(f"no tokenizer in {path}: looked for {', '.join(_NAMES)}")
    return found


def _tokenizer_json(file: Path) -> Backend:
    try:
        return Backend.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises a bare Exception, whatever is wrong
        raise UserError(f"{file} is not a readable tokenizer: {error}") from None


def _vocab_and_merges(file: Path) -> Backend:
    """GPT-2's pair of files (also RoBERTa's, BART's)."""
    merges = file.with_name(file.name.replace("vocab.json", "merges.txt"))
    if not merges.is_file():
        raise UserError(f"{file} needs {merges.name} beside it")
    try:
        backend = Backend(models.BPE.from_file(str(file), str(merges)))
    except Exception as error:
        raise UserError(f"{file} and {merges.name} are not a readable byte-level BPE: {error}") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [
        t for t in ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>") if backend.token_to_id(t) is not None
    ]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return backend


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json."""
    return _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} must be a JSON object")
    return found


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _add_tokens(backend: Backend, folder: Path, settings: dict[str, Any]) -> None:
    """Tokens that only the side files name; where the tokenizer has them they keep their ids."""
    listed: list[tuple[int, str, bool]] = [(i, t, False) for t, i in _json(folder / "added_tokens.json").items()]
    for i, token in settings.get("added_tokens_decoder", {}).items():
        listed.append((int(i), token["content"], bool(token.get("special"))))
    known = {t.content for t in backend.get_added_tokens_decoder().values()}
    for i, content, special in sorted(listed):
        if content in known:
            continue
        if backend.token_to_id(content) not in (i, None) or (
            backend.token_to_id(content) is None and i != _next(backend)
        ):
            continue  # a hole in the numbering: the id could not be kept
        token = AddedToken(content, special=special, normalized=False)
        (backend.add_special_tokens if special else backend.add_tokens)([token])
    named = {c for role in ("bos", "eos", "pad") if (c := _content(settings.get(f"{role}_token")))}
    present = [t for t in sorted(named) if backend.token_to_id(t) is not None]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in present if t not in known])


def _next(backend: Backend) -> int:
    return max(backend.get_vocab().values(), default=-1) + 1


def _frame(backend: Backend, settings: dict[str, Any], roles: dict[str, str | None]) -> None:
    """Follow `add_bos_token` where the file says it and the tokenizer itself does otherwise."""
    wanted, bos = settings.get("add_bos_token"), roles.get("bos")
    if wanted is None or not bos or backend.token_to_id(bos) is None:
        return
    encoded = backend.encode("a")
    there = bool(encoded.ids) and encoded.ids[0] == backend.token_to_id(bos)
    if bool(wanted) != there:
        parts = f"{bos} $A" if wanted else "$A"
        special = [(bos, backend.token_to_id(bos))] if wanted else []
        backend.post_processor = processors.TemplateProcessing(single=parts, special_tokens=special)


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template}
        return named.get("default") or next(iter(named.values()), None)
    return template


def _stops(folder: Path) -> set[int]:
    """The ids at which the model's own generation settings stop."""
    stops = _json(folder / "generation_config.json").get("eos_token_id")
    return {stops} if isinstance(stops, int) else set(stops or ())
