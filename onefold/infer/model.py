"""What `onefold.load` returns: a model with its tokenizer, ready to be asked."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.data.text.chat.messages import chat_ids
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.classify import Classifier
from onefold.infer.embedder import TextEmbedder
from onefold.infer.generation import engine
from onefold.infer.generation.continuation import Continuation, Decodes
from onefold.infer.generation.early_exit import CARD, EarlyExit, ExitRule, fingerprint
from onefold.infer.generation.few_rows import for_decoding
from onefold.infer.generation.sampling import Sampling, randomness
from onefold.infer.generation.speculative import Draft, ModelDraft, NgramDraft, Speculation, shallow, takes_back
from onefold.infer.seq2seq import Seq2SeqModel
from onefold.infer.text_encoder import TextEncoder
from onefold.infer.writer import Prompt, Writer
from onefold.models.embedder import EmbedderConfig
from onefold.models.encoder import EncoderConfig
from onefold.models.recurrent.bilm import BiLMConfig
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.models.recurrent.seq2seq import RecurrentSeq2SeqConfig
from onefold.models.seq2seq import Seq2SeqConfig
from onefold.models.transformer import DecoderConfig
from onefold.models.words.word_reader import WordReaderConfig
from onefold.nn.position import LearnedPositionConfig

REMEMBERED = 16  # ids of the prompt that a continuation's first piece of text is decoded behind
WRITES = "writes"  # in the card of a model that has a classifier, and yet is there to write (a policy's critic)

BOTH = "a draft and early exit are two ways to the same: choose one of them"
CALIBRATED = "calibrated"

TEXT = DecoderConfig | RecurrentConfig | EncoderConfig | BiLMConfig | WordReaderConfig


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> "Writer | TextEncoder | TextEmbedder | Classifier":
    """Open a run, an artifact, a published folder (Hugging Face, timm, Meta, Mistral), a .gguf file, or org/name.

    Returns a `Model` that continues text, a `Seq2SeqModel` that writes one text about another, a `TextEncoder` that
    reads or classifies texts, a `TextEmbedder` that makes vectors of them, or a `Classifier` of pictures. `dtype`
    None: fp32 on the CPU, as stored elsewhere. `adapters`: name → a run that adapted this model, or a PEFT folder; the
    first is at work until `use` says otherwise. Raises UserError for what is not a model or is damaged.
    """
    from onefold.interop.open import open_model

    loaded = open_model(path, device, dtype, adapters)
    if isinstance(loaded.config, EmbedderConfig):
        return TextEmbedder(loaded)
    if isinstance(loaded.config, Seq2SeqConfig | RecurrentSeq2SeqConfig):
        return Seq2SeqModel(loaded)
    writes = getattr(loaded.config, "classes", 0) == 0 or loaded.card.get(WRITES)
    if isinstance(loaded.config, DecoderConfig | RecurrentConfig) and writes:
        return Model(loaded)
    if isinstance(loaded.config, WordReaderConfig) and not loaded.config.classes:
        raise UserError(f"{path} holds word vectors: use onefold.load_vectors, or fine-tune with start={path}")
    return (TextEncoder if isinstance(loaded.config, TEXT) else Classifier)(loaded)


def as_writer(model: "Writer | TextEncoder | TextEmbedder | Classifier", name: str | Path) -> Writer:
    """`model`, which has to write text. Raises UserError saying what it does instead."""
    if isinstance(model, TextEmbedder):
        raise UserError(f"{name} makes vectors of texts and writes none: try onefold embed {name} TEXT")
    if isinstance(model, TextEncoder):
        raise UserError(
            f"{name} reads text and writes none: try onefold fill, classify, tag, answer or embed, as it was trained"
        )
    if not isinstance(model, Writer):
        raise UserError(f"{name} is a model of pictures: try onefold classify {name} PICTURE")
    return model


class Model(Writer):
    """A loaded model that goes on where a text stops. Options of `chat`, too, are the fields of Sampling."""

    continues = True

    @property
    def context(self) -> int | None:
        """How many tokens a text may have, prompt included; None where the architecture sets no end."""
        return self.context_with(self.adapter)

    def context_with(self, adapter: str | None) -> int | None:
        """`context` as it is when this adapter is at work.

        Learned positions that vectors before the text take (see adapt/prompts.py) are not left to it.
        """
        limit, openings = engine.reach(self.config), getattr(self.network, "openings", None)
        if limit is None or openings is None or openings.room is None or adapter not in openings.adapters:
            return limit
        (vectors,) = openings.adapters[adapter].parameters()  # [N, D] or [L, 2, Hkv, N, Dh]
        return min(limit, openings.room - vectors.shape[-2])

    def speculate(self, draft: "str | Path | Model | None") -> None:
        """Write single texts faster from now on, with the same distribution: see infer/generation/speculative.py.

        draft: a smaller model with the same tokens, or where one lies; "ngram": what the text itself said before;
        "first:N": the model's own first N layers; None: no draft. Raises UserError for one that does not go with it.
        """
        if draft is None:
            self.speculation = None
            return
        if self.early_exit is not None:
            raise UserError(BOTH)
        takes_back(self.network)
        own = re.fullmatch(r"first:(\d+)", draft) if isinstance(draft, str) else None
        if draft == "ngram":
            proposes: Draft = NgramDraft()
        elif own:
            proposes = ModelDraft(for_decoding(shallow(self.network, int(own[1]))), self.config.vocab, self.context)
        else:
            other = draft if isinstance(draft, Model) else load(draft, engine.device_of(self.network))
            if not isinstance(other, Model) or other.tokenizer.vocabulary != self.tokenizer.vocabulary:
                raise UserError(f"draft {draft} has other tokens than the model: a draft needs the same vocabulary")
            takes_back(other.network)
            proposes = ModelDraft(other._network(()), self.config.vocab, other.context)
        self.speculation = Speculation(proposes)

    def leave_early(self, rule: "str | float | ExitRule | None" = CALIBRATED) -> None:
        """Let tokens leave the model as soon as a layer is sure: see infer/generation/early_exit.py. How many layers
        they took is `early_exit.mean_layers`.

        rule: "calibrated", what `onefold calibrate` found for this model; a threshold for the gap between the two
        likeliest tokens, 0 to 1; a rule of your own; None: all layers again. Beams always take all. Raises UserError
        where nothing was calibrated, or other weights were.
        """
        if rule is None:
            self.early_exit = None
            return
        if self.speculation is not None:
            raise UserError(BOTH)
        if not isinstance(rule, ExitRule):
            rule = self._calibrated() if rule == CALIBRATED else ExitRule(threshold=_threshold(rule))
        self.early_exit = EarlyExit(self._fast, rule).eval()

    def _calibrated(self) -> ExitRule:
        told = self.card.get(CARD)
        if not isinstance(told, dict) or "rule" not in told:
            raise UserError("nothing was calibrated for this model: run onefold calibrate, or give a threshold (0.9)")
        if told.get("weights") != fingerprint(self.network):
            raise UserError("early exit was calibrated for other weights than these: run onefold calibrate again")
        return ExitRule.from_dict(told["rule"])

    @torch.no_grad()
    def logits(self, ids: Int[Tensor, "B T"] | Sequence[Sequence[int]]) -> Float[Tensor, "B T V"]:
        """Logits of what follows each token. Raises UserError for ids outside the vocabulary or learned positions."""
        ids = torch.as_tensor(ids, device=engine.device_of(self.network))
        if ids.ndim != 2 or ids.dtype.is_floating_point:
            raise UserError(f"logits takes whole numbers [rows, tokens], not {ids.dtype} {list(ids.shape)}")
        learned = getattr(getattr(self.config, "embed", None), "position", None)
        if isinstance(learned, LearnedPositionConfig) and ids.shape[1] > learned.context:
            raise UserError(f"{ids.shape[1]} tokens exceed the model's {learned.context} learned positions")
        self._check(ids)
        return self.network(ids.long())

    @overload
    def chat(self, messages: Sequence[Mapping[str, Any]], stream: Literal[False] = False, **options: Any) -> str: ...
    @overload
    def chat(self, messages: Sequence[Mapping[str, Any]], stream: Literal[True], **options: Any) -> Iterator[str]: ...
    def chat(self, messages, stream=False, **options):
        """The assistant's answer to [{"role": "user", "content": "…"}, …], whole or as an iterator of pieces."""
        sampling = Sampling.from_dict(options)
        row = self.begin(chat_ids(messages, self.tokenizer), sampling)
        if stream:
            return self._pieces(row, sampling)
        self.finish([row], sampling)
        return row.text

    def best(self, texts: Sequence[str], top: int = 3) -> list[list[tuple[str, float]]]:
        """The likeliest classes of each text with their shares, best first, of a model that was tuned to tell them.

        Raises UserError for one that was not.
        """
        from onefold.infer.label_words import ASKED, LabelWordsConfig, WordScorer

        if ASKED not in self.card:
            raise UserError("this model writes text and classifies nothing: try onefold generate, or onefold tune")
        scorer = WordScorer(self, LabelWordsConfig.from_dict(self.card[ASKED]))
        return scorer.best(texts, top, self.card.get("room", 0))

    def ids(self, prompt: Prompt) -> list[int]:
        """What the model reads of a prompt."""
        return self.tokenizer.prompt(prompt) if isinstance(prompt, str) else list(prompt)

    def begin(self, prompt: Prompt, sampling: Sampling, copy: int = 0, context: int | None = None) -> Continuation:
        """A continuation to be written by `run` or `finish`. Ids are taken as they are; text gets what precedes texts.

        With one seed, equal prompts of equal `copy` become equal texts. context: None: that of now.
        """
        ids = self.ids(prompt)
        self._check(torch.tensor(ids))
        room = engine.budget(ids, sampling.max_new_tokens, context or self.context)
        tokenizer = self._loaded.tokenizer
        random = randomness(sampling, ids, copy)
        if tokenizer is None:
            return Continuation(ids, room, random=random)
        # Text goes on where the prompt stopped, so a first word keeps its space; an answer begins afresh.
        stream = behind(tokenizer, ids) if isinstance(prompt, str) else tokenizer.stream()
        return Continuation(ids, room, tokenizer.stops, sampling.stop, stream, random)

    def _network(self, rows: Sequence[Continuation]) -> nn.Module:
        return self._fast


def behind(tokenizer: Tokenizer, ids: Sequence[int]) -> Decodes:
    """What spells ids that go on from these, so that a first word keeps its space."""
    stream = tokenizer.stream()
    for token in ids[-REMEMBERED:]:
        stream.push(token)
    return stream


def _threshold(given: str | float) -> float:
    try:
        threshold = float(given)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise UserError(f"early exit takes calibrated, or a threshold from 0 to 1, not {given}")
    return threshold
