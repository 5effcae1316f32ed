"""Finding and reading a tokenizer among the files in which published models carry one."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.marian import read_marian
from onefold.data.text.tokenizers.sentencepiece import read_sentencepiece
from onefold.data.text.tokenizers.tokenizer import SENTINEL

_NAMES = (
    "tokenizer.json",
    "source.spm",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ESM = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")


def load(path: Path) -> dict[str, Any]:
    """The arguments of `Tokenizer` for a tokenizer file or the folder that holds one.

    Raises UserError when nothing there is a tokenizer, or the file is damaged.
    """
    file = _find(path)
    settings = _settings(file.parent)
    roles: dict[str, str | None] = {}
    if file.suffix == ".model":
        backend, roles = read_sentencepiece(file)
    elif file.suffix == ".spm":
        backend, roles = read_marian(file)
    elif file.name.endswith("vocab.json"):
        backend, roles = _vocab_and_merges(file)
    elif file.suffix == ".txt":
        backend, roles = _vocabulary_lines(file, settings)
    else:
        backend = _tokenizer_json(file)
    _add_tokens(backend, file.parent, settings)
    if file.suffix == ".model":
        _add_sentinels(backend, settings, roles)
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


def _vocab_and_merges(file: Path) -> tuple[Backend, dict[str, str | None]]:
    """GPT-2's pair of files, and those of RoBERTa and BART, which frame their texts: the tokenizer and its roles."""
    merges = file.with_name(file.name.replace("vocab.json", "merges.txt"))
    if not merges.is_file():
        raise UserError(f"{file} needs {merges.name} beside it")
    try:
        backend = Backend(models.BPE.from_file(str(file), str(merges)))
    except Exception as error:
        raise UserError(f"{file} and {merges.name} are not a readable byte-level BPE: {error}") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if None not in map(backend.token_to_id, _ROBERTA):
        return backend, _framed(backend, _ROBERTA, "<s>", "</s>", "<s> $A </s> </s> $B </s>")
    end = "<|endoftext|>" if backend.token_to_id("<|endoftext|>") is not None else None
    _add_special(backend, ("<|endoftext|>", *_ROBERTA))
    return backend, {"bos": end, "eos": end}


def _vocabulary_lines(file: Path, settings: dict[str, Any]) -> tuple[Backend, dict[str, str | None]]:
    """A token a line: WordPiece (BERT), or the letters of proteins (ESM). The tokenizer and its roles."""
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a readable vocabulary: {error}") from None
    vocabulary = {line: i for i, line in enumerate(lines)}
    if set(_ESM) <= set(vocabulary):
        return one_letter_each(vocabulary)
    if missing := [token for token in _BERT[1:4] if token not in vocabulary]:
        raise UserError(f"{file} is no vocabulary of WordPiece: it lacks {', '.join(missing)}")
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    # Words with capitals would never be found if texts were made small.
    cased = any(token != token.lower() for token in vocabulary if not token.startswith("["))
    backend.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", not cased),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend, _framed(backend, _BERT, "[CLS]", "[SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")


def one_letter_each(vocabulary: dict[str, int]) -> tuple[Backend, dict[str, str | None]]:
    """A token a letter, whatever blanks stand between them; special tokens are ESM's. The tokenizer and its roles."""
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    each = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), each])
    backend.decoder = decoders.Fuse()
    return backend, _framed(backend, (*_ESM, "<null_1>"), "<cls>", "<eos>", "<cls> $A <eos> $B <eos>")


def _framed(backend: Backend, special: tuple[str, ...], start: str, end: str, pair: str) -> dict[str, str | None]:
    """Let texts begin and end with these tokens where special ones are asked for; the roles of the tokens."""
    _add_special(backend, special)
    ids = [(token, backend.token_to_id(token)) for token in (start, end)]
    backend.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", pair=pair, special_tokens=ids)
    return {"bos": start, "eos": end, "pad": next(token for token in special if "pad" in token.lower())}


def _add_special(backend: Backend, tokens: tuple[str, ...]) -> None:
    """Those of `tokens` that there are. Where blanks belong to words, a hidden word takes the one before it along."""
    present, words = [t for t in tokens if backend.token_to_id(t) is not None], isinstance(backend.model, models.BPE)
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, lstrip=words and t == "<mask>") for t in present]
    )


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


def _add_sentinels(backend: Backend, settings: dict[str, Any], roles: dict[str, str | None]) -> None:
    """What a SentencePiece file of T5 does not say: <extra_id_0> is the last of 100 more tokens, and a text ends."""
    unsaid = "" if roles["bos"] or roles["pad"] is None or backend.token_to_id(roles["pad"]) else "T5Tokenizer"
    if roles["eos"] is None or not settings.get("tokenizer_class", unsaid).startswith(("T5", "MT5")):
        return
    names = [SENTINEL.format(i) for i in reversed(range(settings.get("extra_ids", 100)))]
    known = backend.get_vocab()
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names if n not in known])
    end = [(roles["eos"], backend.token_to_id(roles["eos"]))]
    single, pair = f"$A {roles['eos']}", f"$A {roles['eos']} $B {roles['eos']}"
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=end)


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
