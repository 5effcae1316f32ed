"""Tokenizers out of what model files hold: ranked byte strings, merges, or scored pieces.

All become a `tokenizers.Tokenizer`. The ways of cutting text before merging are named as llama.cpp names them.
"""

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from onefold.data.text.tokenizers.sentencepiece import SPACE, merges_of, scored_bpe, space_decoder

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA3_PATTERN = _WORDS + r"\p{N}{1,3}" + _REST
TEKKEN_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# One pattern that cuts words; "" stands for GPT-2's own, "digits" for GPT-2's after every digit was set apart.
CUTS = {
    "gpt-2": "",
    "smollm": "digits",
    "llama-bpe": LLAMA3_PATTERN,
    "qwen2": _WORDS + r"\p{N}" + _REST,
    "tekken": TEKKEN_PATTERN,
}
SAME_CUT = {  # other names of the same ways
    "olmo": "gpt-2",
    "mpt": "gpt-2",
    "jais": "gpt-2",
    "trillion": "gpt-2",
    "phi-2": "gpt-2",
    "gpt-neox": "gpt-2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
    "exaone": "smollm",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "smaug-bpe": "llama-bpe",
    "dbrx": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "stablelm2": "qwen2",
    "megrez": "qwen2",
}
_WHOLE_WORDS = ("llama-bpe", "tekken")  # a word that is in the vocabulary stays whole, whatever the merges say
# A text on which the ways of cutting differ from each other.
_PROBE = (
    "It's THEY'LL a1234 5\u00b2x  \n\n\t end.\r\n\n/* http://x.y */ camelCase W\u00f6rter "
    "\u4f60\u597d \u0e44\u0e17\u0e22\u0e17\u0e35\u0e48 \U0001f642 e\u0301  "
)


def cutter(name: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of this name; KeyError when there is none."""
    pattern = CUTS[SAME_CUT.get(name, name)]
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern in ("", "digits"))
    if pattern == "":
        return own
    if pattern == "digits":
        first = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([first, own])


def cut_of(tokenizer: Tokenizer) -> str | None:
    """The name of a byte-level tokenizer's way of cutting, known by what it does to a text; None: no known one."""
    if tokenizer.pre_tokenizer is None:
        return None
    shown = tokenizer.pre_tokenizer.pre_tokenize_str(_PROBE)
    return next((name for name in CUTS if cutter(name).pre_tokenize_str(_PROBE) == shown), None)


def byte_level(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], cut: str) -> Tokenizer:
    """Byte-level BPE; the vocabulary writes bytes as GPT-2's printable characters."""
    whole = SAME_CUT.get(cut, cut) in _WHOLE_WORDS
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges), ignore_merges=whole))
    if SAME_CUT.get(cut, cut) == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cutter(cut)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def ranked_bytes(tokens: Sequence[bytes], cut: str, first: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE from tokens in order of rank (tiktoken's files), ids from behind `first` on.

    Their merges are found again: a token that is made earlier is joined earlier.
    """
    letters = byte_letters()
    pieces = ["".join(letters[b] for b in token) for token in tokens]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    merges = merges_of(pieces, ranks)
    vocabulary = {piece: i for i, piece in enumerate([*first, *pieces])}
    return byte_level(vocabulary, merges, cut)


def scored_pieces(
    pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], unknown: str | None, prefix: bool
) -> Tokenizer:
    """SentencePiece BPE with byte fallback (Llama 2, Mistral). `prefix`: text starts with a space."""
    tokenizer = Tokenizer(scored_bpe(pieces, scores, kinds, unknown, byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces] if prefix else [spaces])
    tokenizer.decoder = space_decoder(prefix)
    return tokenizer


def mark_special(tokenizer: Tokenizer, control: Iterable[str], own: Iterable[str] = ()) -> None:
    """Let `control` tokens and the user's `own` words be found in text as wholes; controls vanish when decoding."""
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in own])


def frame(tokenizer: Tokenizer, before: str | None, after: str | None) -> None:
    """Encode with these tokens before and after every text, when special tokens are asked for."""
    if not before and not after:
        return
    parts = [*([before] if before else []), "$A", *([after] if after else [])]
    special = [(token, tokenizer.token_to_id(token)) for token in {before, after} if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(parts), pair=" ".join(parts + [p.replace("$A", "$B") for p in parts]), special_tokens=special
    )


def byte_letters() -> dict[int, str]:
    """GPT-2's printable character for every byte: itself where it prints, else the next unused one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = (b for b in range(256) if b not in printable)
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
