"""SentencePiece models (Llama 2, Mistral, T5) as fast tokenizers; the file itself is read by `sentencepiece`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

from onefold.core.errors import UserError, missing_extra

SPACE = "\u2581"  # how SentencePiece writes a space
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def read_sentencepiece(file: Path) -> tuple[Tokenizer, dict[str, str | None]]:
    """The tokenizer in a SentencePiece .model and its special tokens {bos, eos, pad}.

    Raises UserError when the file is damaged, of another kind (only BPE and unigram), or the package is missing.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise missing_extra("sentencepiece", "sentencepiece", f"reading {file.name}") from None
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError:
        raise UserError(f"{file} is not a SentencePiece model (or it is damaged)") from None
    kinds = [p.type for p in proto.pieces]
    pieces = [(p.piece, p.score) for p in proto.pieces]
    settings, rules = proto.trainer_spec, proto.normalizer_spec
    if settings.model_type == UNIGRAM:
        # Text that reads like a control piece must not become one: anything else is likelier.
        scored = [(piece, -1e6 if kind == CONTROL else score) for (piece, score), kind in zip(pieces, kinds)]
        model = models.Unigram(scored, settings.unk_id, settings.byte_fallback)
    elif settings.model_type == BPE:
        names, scores = [piece for piece, _ in pieces], [score for _, score in pieces]
        unknown = settings.unk_piece if settings.unk_piece in names else None
        model = scored_bpe(names, scores, kinds, unknown, settings.byte_fallback)
    else:
        raise UserError(f"{file}: SentencePiece models of words or characters are not supported, only BPE and unigram")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(rules)
    tokenizer.decoder = space_decoder(rules.add_dummy_prefix)
    control = [piece for (piece, _), kind in zip(pieces, kinds) if kind in (CONTROL, UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in control])
    own = [piece for (piece, _), kind in zip(pieces, kinds) if kind == USER]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    ids = {"bos": settings.bos_id, "eos": settings.eos_id, "pad": settings.pad_id}
    roles = {role: pieces[i][0] if 0 <= i < len(pieces) else None for role, i in ids.items()}
    bos = roles["bos"]
    if bos:
        special = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    return tokenizer, roles


def scored_bpe(
    pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], unknown: str | None, byte_fallback: bool
) -> models.BPE:
    """SentencePiece joins the two neighbours whose union scores highest: merges in order of falling score."""
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    usable = {piece: i for piece, i in vocabulary.items() if kinds[i] in (NORMAL, USER, UNUSED)}
    order = sorted((i for i in range(len(pieces)) if kinds[i] == NORMAL), key=lambda i: (-scores[i], i))
    merges = merges_of([pieces[i] for i in order], usable)
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)


def merges_of(pieces: Iterable[str], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """For each piece, best first, every cut of it into two pieces that exist."""
    merges = []
    for piece in pieces:
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        known = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
        merges += sorted(known, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
    return merges


def space_decoder(prefix: bool) -> decoders.Decoder:
    """From pieces to text. `prefix`: encoding put a space before the text."""
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def _normalizer(rules) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
