"""Text to token ids and back, for tokenizers trained here and for those that come with a published model.

One convention everywhere: a document is `start, its tokens, end`, so its first byte is predicted from `start` and a
generation from an empty prompt begins where training documents began. Trained here, both are `<|endoftext|>`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from onefold.core.errors import UserError
from onefold.core.files import atomic_write

END_OF_TEXT = "<|endoftext|>"
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
ENCODER_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # RoBERTa's and BART's
T5_TOKENS = ("<pad>", "</s>", "<unk>")
SENTINEL = "<extra_id_{}>"  # names a gap in a text (T5)
FRAMED_TOGETHER = 1024  # texts, which are short where they are framed
BATCH_BYTES = 4 << 20  # text encoded at once: bounds memory, still feeds every core

# What published tokenizers call a document's beginning and end, padding, a hidden token, and the end of a turn.
_DOCUMENT_STARTS = ("<s>", "[CLS]", "<cls>")
_DOCUMENT_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "[SEP]", "<eos>")
_PADS = ("<pad>", "[PAD]")
MASKS = ("<mask>", "[MASK]")
_TURN_ENDS = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end_of_turn|>", "<|return|>")


class Tokenizer:
    """A tokenizer that never changes, with its special tokens and chat template.

    `bos`, `eos` and `pad` are ids or token strings; `stops` are further ids that end a turn.
    """

    def __init__(
        self,
        backend: Backend,
        bos: str | int | None = None,
        eos: str | int | None = None,
        pad: str | int | None = None,
        chat_template: str | None = None,
        stops: Iterable[int] = (),
    ):
        self._literal = Backend.from_str(backend.to_str())
        self._literal.no_padding()
        self._literal.no_truncation()
        self._literal.encode_special_tokens = True  # "<|end|>" typed by a user is eight characters, not a command
        self.bos, self.eos, self.pad = (self._id(token) for token in (bos, eos, pad))
        self.chat_template = chat_template
        self._given_stops = frozenset(stops)
        self._framings: dict[tuple[int | None, bool], Backend] = {}

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab: int, special: Sequence[str] = (END_OF_TEXT, *CHAT_TOKENS), minimum: int = 2
    ) -> Self:
        """Byte-level BPE (Sennrich 2016; words cut as in GPT-2) of at most `vocab` tokens, `special` first.

        Merges that occur fewer than `minimum` times are not made, so a small corpus gives a smaller vocabulary. The
        first special token begins and ends documents and pads, unless others are named as published tokenizers do it;
        one that pads begins nothing (T5).
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocab < len(alphabet) + len(special):
            least = len(alphabet) + len(special)
            raise UserError(f"vocab={vocab} is too small: the 256 bytes and the special tokens alone need {least}")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=vocab,
                # A hidden word takes the blank before it along: blanks belong to the words that follow.
                special_tokens=[AddedToken(t, special=True, normalized=False, lstrip=t in MASKS) for t in special],
                initial_alphabet=alphabet,
                min_frequency=minimum,
                show_progress=False,
            ),
        )
        names = (_DOCUMENT_STARTS, _DOCUMENT_ENDS, _PADS)
        first = special[0] if special else None
        start, end, pad = (next((name for name in some if name in special), first) for some in names)
        start = None if start in _PADS else start
        if end is not None:
            _frame(backend, start, end)
        return cls(backend, bos=start, eos=end, pad=pad)  # no chat template: it comes with conversations

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read tokenizer.json, vocab.json + merges.txt, vocab.txt or a SentencePiece .model, or the folder of them."""
        from onefold.data.text.tokenizers.files import load

        return cls(**load(Path(path)))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer` opens too.

        Further ids that end a turn go where such models have them, into generation_config.json.
        """
        folder = Path(folder)
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        named = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        if self.mask is not None:
            named |= {"mask_token": self.mask, "cls_token": self.start, "sep_token": self.end}
        for name, token in named.items():
            if token is not None:
                config[name] = self._literal.id_to_token(token)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        if self._given_stops:
            stops = sorted(self.stops)
            atomic_write(folder / "generation_config.json", json.dumps({"eos_token_id": stops}, indent=2))
        atomic_write(folder / "tokenizer.json", self._literal.to_str())
        atomic_write(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of `text` alone. `special`: names of special tokens in it become those tokens (templates)."""
        return (self._marked if special else self._literal).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], special: bool = False, inside: bool = False) -> list[list[int]]:
        """`encode` of many texts, on all cores. inside: as they stand behind other text, where no blank is put in."""
        backend = self._inside if inside else self._marked if special else self._literal
        found: list[list[int]] = []
        for some in _portions(texts):
            found += [e.ids for e in backend.encode_batch_fast(some, add_special_tokens=False)]
        return found

    def encode_framed(
        self,
        texts: Sequence[str],
        others: Sequence[str] | None = None,
        length: int | None = None,
        special: bool = False,
    ) -> list[tuple[list[int], list[int]]]:
        """(ids, types) of each text, or pair of texts, with the special tokens that this tokenizer puts around them.

        types: 0, and 1 where a tokenizer tells the second text so. length: of ids at most; then the longer one of a
        pair loses its end. special: as in `encode`. A text of no tokens, where none are put around it, is one: `start`.
        """
        backend = self._framing(length, special)
        inputs = list(texts) if others is None else list(zip(texts, others))
        found: list[tuple[list[int], list[int]]] = []
        for start in range(0, len(inputs), FRAMED_TOGETHER):
            encoded = backend.encode_batch_fast(inputs[start : start + FRAMED_TOGETHER])
            found += [(e.ids, e.type_ids) if len(e) else ([self.start], [0]) for e in encoded]
        return found

    def cut(self, text: str) -> list[str | int]:
        """Text at special tokens named in it: stretches of plain text, none of them empty, and the tokens' ids."""
        if self._special_pattern is None:
            return [text] if text else []
        parts: list[str | int] = [*self._special_pattern.split(text)]
        parts[1::2] = [self._named(name) for name in parts[1::2]]
        return [part for part in parts if part != ""]

    def turn(self, text: str) -> str:
        """The text up to the first special token named in it at which a generation stops, with it; else all of it."""
        found = self._special_pattern.finditer(text) if self._special_pattern else ()
        return next((text[: name.end()] for name in found if self._named(name[0]) in self.stops), text)

    def mentions_special(self, text: str) -> bool:
        """Whether the name of a special token stands in `text`."""
        return self._special_pattern is not None and self._special_pattern.search(text) is not None

    def prompt(self, text: str) -> list[int]:
        """What a generation starts from: the text behind what this tokenizer puts before every text; never empty."""
        return [*self.prefix, *self.encode(text)] or [self.start]

    def decode(self, ids: Iterable[int], special: bool = False, gaps: bool = False) -> str:
        """The text of `ids`, special tokens shown only if asked for; broken UTF-8 becomes U+FFFD.

        gaps: sentinels are shown, which tell what follows them apart.
        """
        shown = [int(i) for i in ids]
        if gaps and self.sentinels:
            shown, special = [i for i in shown if i not in self._hidden], True
        return self._literal.decode(shown, skip_special_tokens=not special)

    def stream(self, gaps: bool = False) -> "TextStream":
        """For ids that arrive one by one; gaps: as in `decode`."""
        return TextStream(partial(self.decode, gaps=gaps))

    def add_special(self, tokens: Sequence[str]) -> "Tokenizer":
        """This tokenizer with further special tokens, ids from `size` on; those that it has stay as they are."""
        backend = self.backend
        known = self.special
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens if t not in known])
        return Tokenizer(backend, self.bos, self.eos, self.pad, self.chat_template, self._given_stops)

    def with_template(self, chat_template: str | None) -> "Tokenizer":
        """This tokenizer with another chat template."""
        changed = copy(self)
        changed.__dict__.pop("digest", None)
        changed.chat_template = chat_template
        return changed

    @property
    def backend(self) -> Backend:
        """A copy of the underlying `tokenizers.Tokenizer`."""
        return Backend.from_str(self._literal.to_str())

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        return self._literal.get_vocab()

    @cached_property
    def size(self) -> int:
        """Rows that an embedding needs: the largest id + 1."""
        return max(self.vocabulary.values(), default=-1) + 1

    @cached_property
    def special(self) -> dict[str, int]:
        """Special tokens by name."""
        return {t.content: i for i, t in self._literal.get_added_tokens_decoder().items() if t.special}

    @cached_property
    def blank_anew(self) -> bool:
        """Whether text behind a special token is encoded as at the beginning, where some tokenizers put a blank."""
        name = next(iter(self.special), None)
        return name is None or self.encode(f"{name}a", special=True)[1:] == self.encode("a")

    @cached_property
    def prefix(self) -> list[int]:
        """Ids that this tokenizer puts before every text (a beginning-of-text token, or nothing)."""
        encoded = self._literal.encode("a")
        return encoded.ids[: encoded.special_tokens_mask.index(0)] if 0 in encoded.special_tokens_mask else []

    @cached_property
    def suffix(self) -> list[int]:
        """Ids that end a text which is read as a whole: those that this tokenizer puts behind it, else `end`."""
        encoded = self._literal.encode("a")
        mask = encoded.special_tokens_mask
        behind = mask[::-1].index(0) if 0 in mask else 0
        return encoded.ids[len(mask) - behind :] or [self.end]

    @cached_property
    def end(self) -> int:
        """The id that ends a document. Raises UserError when the tokenizer has none."""
        found = next((self.special[name] for name in _DOCUMENT_ENDS if name in self.special), self.eos)
        if found is None:
            raise UserError(f"this tokenizer has no token that ends a text; add one: add_special(['{END_OF_TEXT}'])")
        return found

    @property
    def start(self) -> int:
        """The id that begins a document."""
        if self.bos is not None:
            return self.bos
        return next((self.special[name] for name in _DOCUMENT_STARTS if name in self.special), self.end)

    @cached_property
    def mask(self) -> int | None:
        """The id that hides a token; None where the tokenizer has none."""
        return next((self.special[name] for name in MASKS if name in self.special), None)

    @property
    def decoder_start(self) -> int:
        """The id that a decoder begins with where it reads another text first.

        Padding (T5, Marian); where every text begins with a token anyhow, the one that ends texts (BART).
        """
        return self.end if self.prefix or self.pad is None else self.pad

    @cached_property
    def sentinels(self) -> list[int]:
        """The ids of <extra_id_0>, <extra_id_1>, …, as many as there are."""
        named = map(SENTINEL.format, range(len(self.vocabulary)))
        return [self.vocabulary[name] for name in takewhile(self.vocabulary.__contains__, named)]

    @cached_property
    def _hidden(self) -> frozenset[int]:
        """Special tokens that are no sentinels."""
        return frozenset(self.special.values()) - frozenset(self.sentinels)

    @cached_property
    def stops(self) -> set[int]:
        """Ids that end a turn or a text."""
        ends = set(_TURN_ENDS) - (
            {"<|end|>"} if "<|return|>" in self.special else set()
        )  # there it ends parts of a turn
        named = {self.special[name] for name in (*_DOCUMENT_ENDS, *ends) if name in self.special}
        return named | self._given_stops | ({self.eos} if self.eos is not None else set())

    @cached_property
    def digest(self) -> str:
        """A short hash of everything that decides how text becomes ids."""
        parts = (self._literal.to_str(), self.bos, self.eos, self.pad, self.chat_template)
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()

    @cached_property
    def _marked(self) -> Backend:
        backend = self.backend
        backend.encode_special_tokens = False
        return backend

    @cached_property
    def _inside(self) -> Backend:
        """The backend without the blank that SentencePiece and its kin put before a text."""
        state = json.loads(self._literal.to_str())
        changed = False
        for part in ("normalizer", "pre_tokenizer"):
            state[part], there = _without_blank(state[part])
            changed |= there
        if not changed:
            return self._literal
        backend = Backend.from_str(json.dumps(state))
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        """Names of special tokens, with the white space that they take along; the longest of several counts."""
        tokens = [t for t in self._literal.get_added_tokens_decoder().values() if t.special and t.content]
        names = [
            (r"\s*" if t.lstrip else "") + re.escape(t.content) + (r"\s*" if t.rstrip else "")
            for t in sorted(tokens, key=lambda t: -len(t.content))
        ]
        return re.compile(f"({'|'.join(names)})") if names else None

    def _named(self, found: str) -> int:
        """The special token that the pattern found."""
        return self.special[found if found in self.special else found.strip()]

    def _framing(self, length: int | None, special: bool) -> Backend:
        """A backend that cuts texts so, made once: making one takes as long as encoding hundreds of texts."""
        if (length, special) not in self._framings:
            backend = self.backend
            backend.encode_special_tokens = not special
            if length is not None:
                backend.enable_truncation(length)
            self._framings[length, special] = backend
        return self._framings[length, special]

    def _id(self, token: str | int | None) -> int | None:
        return self._literal.token_to_id(token) if isinstance(token, str) else token


class TextStream:
    """Turns ids that arrive one by one into text; a character appears when all of its bytes have."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []  # enough of the past to decode what comes next as it stands there
        self._recent = 0  # where the ids of the newest finished piece begin
        self._shown = 0  # characters of their text that were given out

    def push(self, token: int) -> str:
        """The new text that `token` completes; often empty, never half a character."""
        self._ids.append(token)
        text = self._decode(self._ids)
        # An unfinished character decodes to one U+FFFD, or to one for each of its at most three bytes.
        safe = len(text) - min(3, len(text) - len(text.rstrip("\ufffd")))
        new, self._shown = text[self._shown : safe], max(safe, self._shown)
        if new and safe == len(text):
            # Keep the newest piece: some decoders drop the space at the beginning of what they are given.
            kept = self._ids[self._recent :]
            length = len(self._decode(kept))
            if length:
                self._ids, self._shown = kept, length
                self._recent = len(kept)
        return new

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole."""
        rest = self._decode(self._ids)[self._shown :]
        self._ids, self._recent, self._shown = [], 0, 0
        return rest


def _without_blank(part: Any) -> tuple[Any, bool]:
    """A normalizer's or pre-tokenizer's state without what puts a blank before a text, and whether there was one."""
    kind = part["type"] if part else None
    if kind == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        inner = [_without_blank(p) for p in part[name]]
        return {**part, name: [p for p, _ in inner if p is not None]}, any(there for _, there in inner)
    if kind == "Prepend":
        return None, True
    if kind == "Metaspace" and part.get("prepend_scheme") != "never":
        return {**part, "prepend_scheme": "never"}, True
    if kind == "ByteLevel" and part.get("add_prefix_space"):
        return {**part, "add_prefix_space": False}, True
    return part, False


def _frame(backend: Backend, start: str | None, end: str) -> None:
    """Let other programs that use the file put the tokens around every text, too."""
    if start is None:
        single, pair = f"$A {end}", f"$A {end} $B {end}"
    elif start == end:  # between documents
        single, pair = f"{start} $A", f"{start} $A $B"
    elif start == "[CLS]":
        single, pair = f"{start} $A {end}", f"{start} $A {end} $B:1 {end}:1"
    else:
        single, pair = f"{start} $A {end}", f"{start} $A {end} {end} $B {end}"
    special = [(name, backend.token_to_id(name)) for name in {start or end, end}]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _portions(texts: Sequence[str]) -> Iterator[list[str]]:
    """Consecutive texts, about BATCH_BYTES at a time."""
    some: list[str] = []
    size = 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some
