"""A model that makes one vector of a text; texts of like lengths go through it together."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.data.text.pairs.contrastive import encode_texts
from onefold.infer.generation.engine import device_of
from onefold.infer.generation.few_rows import for_decoding
from onefold.infer.generation.padding import padded
from onefold.infer.opened import OpenedText
from onefold.interop.loaded import Loaded
from onefold.models.embedder import EmbedderConfig, embedder_of
from onefold.models.encoder import EncoderConfig

TOKENS = {"cpu": 2048}  # read at once, padding included: what a CPU's caches hold, and elsewhere…
TOKENS_ELSEWHERE = 65536  # …what keeps a GPU busy
SHORTER = 0.9  # of a batch's longest text, at least: how much of a batch may be padding
SIDES = ("query", "document")  # what delimiters tell apart


class TextEmbedder(OpenedText):
    """A loaded embedder. Of texts that are longer than it reads, the beginning counts."""

    config: EmbedderConfig  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, loaded: Loaded):
        super().__init__(loaded)
        self._reader = for_decoding(self.network)  # whose packed products are faster with many rows, too

    @property
    def kinds(self) -> tuple[str, ...]:
        """What a text can be read as: the names of the model's prompts, or "query" and "document" with delimiters."""
        return SIDES if self.config.delimiters is not None else tuple(self.config.prompts)

    def embed(self, texts: Sequence[str], kind: str | None = None) -> Float[Tensor, "N E"]:
        """A vector for each text, on the CPU.

        kind: what the texts are, see `kinds`; None: what the model takes them for if it is not told. Any model
        takes "query" and "document"; where it has no prompt for one of them, nothing is put before such texts.
        """
        return self.embed_ids(self.encode(texts, kind))

    def encode(self, texts: Sequence[str], kind: str | None = None, length: int | None = None) -> list[list[int]]:
        """The ids of each text with all that stands around it, at most `length`; None: as many as are read."""
        if isinstance(texts, str):
            raise UserError("give a list of texts; for a single one, [text]")
        config, length = self.config, length or self.config.length
        if kind is not None and kind not in (
            known := (*self.kinds, *(side for side in SIDES if side not in self.kinds))
        ):
            raise UserError(f"{kind!r} is no kind of text that this model knows, only {', '.join(known)}")
        if config.delimiters is not None:
            around = config.delimiters[SIDES.index(kind or SIDES[0])]
            return encode_texts(self.tokenizer, texts, length, around)
        before = config.prompts.get(config.prompt or "" if kind is None else kind, "")
        return encode_texts(self.tokenizer, [before + text for text in texts] if before else texts, length)

    def embed_ids(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "N E"]:
        """A vector for each text, given as ids with all that stands around it."""
        found = torch.empty(len(ids), self.config.width)
        for rows, vectors in self.embed_parts(ids):
            found[rows] = vectors
        return found

    @torch.inference_mode()
    def embed_parts(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Float[Tensor, "B E"]]]:
        """The same in parts: (which texts, their vectors on the CPU), in no order that means anything."""
        device, pad = device_of(self.network), self.tokenizer.pad or 0
        for rows in batches([len(row) for row in ids], TOKENS.get(device.type, TOKENS_ELSEWHERE)):
            lengths = [len(ids[i]) for i in rows]
            tokens = padded([ids[i] for i in rows], pad, device=device)
            ragged = min(lengths) < tokens.shape[1]
            vectors = self._reader.encode(tokens, torch.tensor(lengths, device=device) if ragged else None)
            yield rows, vectors.float().cpu()


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Which rows (lengths: of each) to read together: at most `tokens`, padding included, and hardly any padding.

    The longest come first, so that memory is short at the beginning if ever. Without padding no mask is needed, so
    texts of one length stand alone where they are many.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        most = max(1, tokens // max(1, longest))
        end = start + 1
        while end < len(order) and end - start < most and lengths[order[end]] >= SHORTER * longest:
            end += 1
        yield order[start:end]
        start = end


def as_embedder(model: OpenedText, name: str | Path) -> TextEmbedder:
    """`model`, which has to make vectors of texts: of an encoder the mean of its features, as it is.

    Raises UserError for a model that makes none.
    """
    if isinstance(model, TextEmbedder):
        return model
    if not isinstance(model.config, EncoderConfig):
        trained = f", or train one: onefold train cpt start={name}" if model.config.kind == "decoder" else ""
        raise UserError(f"{name} makes no vectors of texts: take a folder of sentence-transformers{trained}")
    config = embedder_of(model.config)
    with torch.device("meta"):
        network = config.build()
    network.trunk = model.network
    network.log_inverse_temperature = nn.Parameter(torch.zeros(1))
    return TextEmbedder(Loaded(config, network, model.tokenizer, dict(model.card)))
