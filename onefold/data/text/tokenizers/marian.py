"""Marian's tokenizers: SentencePiece models for either language, and a vocabulary of both whose ids count."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.sentencepiece import read_sentencepiece

_SPECIAL = ("</s>", "<unk>", "<pad>")
_UNLIKELY = -1e6  # of a piece of the other language: taken only for what the source's own pieces cannot spell


def read_marian(file: Path) -> tuple[Tokenizer, dict[str, str | None]]:
    """The tokenizer that reads the source language and spells the target's, from source.spm and vocab.json beside it.

    Raises UserError where a file is missing, damaged, or of a kind without a counterpart here.
    """
    beside = file.with_name("vocab.json")
    try:
        vocabulary = json.loads(beside.read_text(encoding="utf-8"))
        pieces = sorted(vocabulary, key=vocabulary.__getitem__)
        whole = [vocabulary[piece] for piece in pieces] == list(range(len(pieces)))
    except FileNotFoundError:
        raise UserError(f"{file} needs vocab.json beside it, which holds Marian's ids") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{beside} is not a readable vocabulary: {error}") from None
    if not whole or (missing := [name for name in _SPECIAL if name not in vocabulary]):
        what = f"lacks {', '.join(missing)}" if whole else "does not number its tokens from 0 on"
        raise UserError(f"{beside} is no vocabulary of Marian: it {what}")
    source, _ = read_sentencepiece(file)
    model = json.loads(source.to_str())["model"]
    if model["type"] != "Unigram":
        raise UserError(f"{file}: of Marian's models only those with unigram SentencePiece are supported")
    scores = {piece: score for piece, score in model["vocab"] if piece not in _SPECIAL}
    # What no piece of the source covers goes letter by letter, as far as the other language has the letters.
    scored = [(piece, scores.get(piece, _UNLIKELY * len(piece) ** 2)) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scored, vocabulary["<unk>"], byte_fallback=False))
    # Text that reads like a special token must not become one.
    plain = [normalizers.Replace(name, f"{name[:-1]} >") for name in _SPECIAL]
    tokenizer.normalizer = normalizers.Sequence([*plain, source.normalizer])
    tokenizer.decoder = source.decoder
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIAL])
    languages = [piece for piece in pieces if piece.startswith(">>") and piece.endswith("<<")]
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in languages])
    ends = [("</s>", vocabulary["</s>"])]
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A $B </s>", special_tokens=ends)
    return tokenizer, {"eos": "</s>", "pad": "<pad>"}
