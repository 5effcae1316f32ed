"""What `onefold.load` returns: a model with its tokenizer, ready to be asked."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onefold.core.errors import UserError
from onefold.data.text.chat import chat_ids
from onefold.data.text.tokenizer import Tokenizer
from onefold.infer import engine
from onefold.infer.beam import beam_search
from onefold.infer.classify import Classifier
from onefold.infer.continuation import Continuation, Decodes
from onefold.infer.embedder import TextEmbedder
from onefold.infer.few_rows import for_decoding
from onefold.infer.opened import OpenedText
from onefold.infer.sampling import Sampling, randomness
from onefold.infer.text_encoder import TextEncoder
from onefold.interop.loaded import Loaded
from onefold.models.bilm import BiLMConfig
from onefold.models.embedder import EmbedderConfig
from onefold.models.encoder import EncoderConfig
from onefold.models.recurrent import RecurrentConfig
from onefold.models.transformer import DecoderConfig
from onefold.models.word_reader import WordReaderConfig
from onefold.nn.position import LearnedPositionConfig

REMEMBERED = 16  # ids of the prompt that a continuation's first piece of text is decoded behind

TEXT = DecoderConfig | RecurrentConfig | EncoderConfig | BiLMConfig | WordReaderConfig

Prompt = str | Sequence[int]  # text, or ids as they are


def load(
    path: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
) -> "Model | TextEncoder | TextEmbedder | Classifier":
    """Open a run, an artifact, a published folder (Hugging Face, timm, Meta, Mistral), a .gguf file, or org/name.

    Returns a `Model` that writes text, a `TextEncoder` that reads or classifies it, or a `Classifier` of pictures.
    `dtype` None: fp32 on the CPU, as stored elsewhere. Raises UserError for what is not a model or is damaged.
    """
    from onefold.interop.open import open_model

    loaded = open_model(path, device, dtype)
    if isinstance(loaded.config, EmbedderConfig):
        return TextEmbedder(loaded)
    if isinstance(loaded.config, DecoderConfig | RecurrentConfig) and not loaded.config.classes:
        return Model(loaded)
    if isinstance(loaded.config, WordReaderConfig) and not loaded.config.classes:
        raise UserError(f"{path} holds word vectors: use onefold.load_vectors, or fine-tune with start={path}")
    return (TextEncoder if isinstance(loaded.config, TEXT) else Classifier)(loaded)


def as_writer(model: "Model | TextEncoder | TextEmbedder | Classifier", name: str | Path) -> "Model":
    """`model`, which has to write text. Raises UserError saying what it does instead."""
    if isinstance(model, TextEmbedder):
        raise UserError(f"{name} makes vectors of texts and writes none: try onefold embed {name} TEXT")
    if isinstance(model, TextEncoder):
        raise UserError(
            f"{name} reads text and writes none: onefold.load({str(name)!r}) has embed, fill_mask, classify"
        )
    if not isinstance(model, Model):
        raise UserError(f"{name} is a model of pictures: try onefold classify {name} PICTURE")
    return model


class Model(OpenedText):
    """A loaded model. Options of `generate`, `stream` and `chat` are the fields of `onefold.infer.sampling.Sampling`:

    max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop,
    beams, length_penalty, length_norm.
    """

    def __init__(self, loaded: Loaded):
        super().__init__(loaded)
        self._decoder = for_decoding(self.network)

    @property
    def context(self) -> int | None:
        """How many tokens a text may have, prompt included; None where the architecture sets no end."""
        return engine.reach(self.config)

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
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[str]: ...
    def generate(self, prompt, **options):
        """The text that follows each prompt; greedy unless `temperature` is given.

        A list is answered in one batch, each text as if its prompt stood alone. Ends at an end-of-text token, a stop
        string (not part of the text), `max_new_tokens`, or the end of the context.
        """
        sampling = Sampling.from_dict(options)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = self.begin_all(prompts, sampling)
        self.finish(rows, sampling)
        return rows[0].text if isinstance(prompt, str) else [row.text for row in rows]

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """`generate`, in pieces as they become certain."""
        sampling = Sampling.from_dict(options)
        return self._pieces(self.begin(prompt, sampling), sampling)

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

    # The parts of `generate`, for those who schedule rows themselves (servers, roll-outs).

    def begin(self, prompt: Prompt, sampling: Sampling, copy: int = 0) -> Continuation:
        """A continuation to be written by `run` or `finish`. Ids are taken as they are; text gets what precedes texts.

        With one seed, equal prompts of equal `copy` become equal texts.
        """
        ids = self.tokenizer.prompt(prompt) if isinstance(prompt, str) else list(prompt)
        self._check(torch.tensor(ids))
        room = engine.budget(ids, sampling.max_new_tokens, self.context)
        tokenizer = self._loaded.tokenizer
        random = randomness(sampling, ids, copy)
        if tokenizer is None:
            return Continuation(ids, room, random=random)
        # Text goes on where the prompt stopped, so a first word keeps its space; an answer begins afresh.
        stream = _behind(tokenizer, ids) if isinstance(prompt, str) else tokenizer.stream()
        return Continuation(ids, room, tokenizer.stops, sampling.stop, stream, random)

    def begin_all(self, prompts: Iterable[Prompt], sampling: Sampling) -> list[Continuation]:
        """`begin` for each prompt, those that occur more than once numbered, so that they become different texts."""
        counts: Counter[Prompt] = Counter()
        rows = []
        for prompt in prompts:
            key = prompt if isinstance(prompt, str) else tuple(prompt)
            rows.append(self.begin(prompt, sampling, counts[key]))
            counts[key] += 1
        return rows

    def run(self, rows: Sequence[Continuation], sampling: Sampling) -> Iterator[None]:
        """Write the rows, a token a step each; close the iterator to stop early."""
        if sampling.beams > 1:
            self.finish(rows, sampling)
            return iter((None,))
        return engine.generate(self._decoder, rows, sampling)

    def finish(self, rows: Sequence[Continuation], sampling: Sampling) -> None:
        """Write the rows to their ends."""
        if sampling.beams == 1:
            for _ in engine.generate(self._decoder, rows, sampling):
                pass
            return
        ends = self._loaded.tokenizer.stops if self._loaded.tokenizer else ()
        found = beam_search(self._decoder, [row.prompt for row in rows], [row.budget for row in rows], sampling, ends)
        for row, (best, *_) in zip(rows, found):
            row.write(best.ids, best.finish)

    def _pieces(self, row: Continuation, sampling: Sampling) -> Iterator[str]:
        for _ in self.run([row], sampling):
            if piece := row.take():
                yield piece

    def _check(self, ids: Tensor) -> None:
        vocab = self.config.vocab
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
            raise UserError(f"token ids must lie between 0 and {vocab - 1}; found {int(ids.min())} to {int(ids.max())}")


def _behind(tokenizer: Tokenizer, ids: Sequence[int]) -> Decodes:
    stream = tokenizer.stream()
    for token in ids[-REMEMBERED:]:
        stream.push(token)
    return stream
