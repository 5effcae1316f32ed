"""A model that reads one text and writes another: translations, summaries, answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from onefold.core.errors import UserError
from onefold.core.progress import say
from onefold.data.text.tokenizers.tokenizer import MASKS, SENTINEL
from onefold.infer.generation import engine
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.padding import padded
from onefold.infer.generation.sampling import Sampling, randomness
from onefold.infer.writer import Prompt, Writer
from onefold.interop.loaded import Loaded
from onefold.nn.position import LearnedPositionConfig

# Settings of a published generation_config.json, and ours of the same meaning.
OBEYED = {"num_beams": "beams", "length_penalty": "length_penalty", "no_repeat_ngram_size": "no_repeat_ngram_size"}


class Conditioned:
    """A network and the sources of its rows, which together take part in the generate loop as a decoder does.

    never: ids that it may not write.
    """

    def __init__(self, network: nn.Module, sources: Sequence[Sequence[int]], never: Sequence[int] = ()):
        self.network, self.sources, self.never = network, sources, list(never)

    def init_state(self, rows: int, capacity: int) -> Any:
        """Read the sources, padded behind their ends."""
        lengths = torch.tensor([len(ids) for ids in self.sources])
        source = padded(self.sources)
        padding = (torch.arange(source.shape[1]) >= lengths[:, None]).long()
        device = engine.device_of(self.network)
        segments = padding.to(device) if padding.any() else None
        return self.network.init_state(source.to(device), segments, capacity)

    def features(
        self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None, *, state: Any
    ) -> Float[Tensor, "B T D"]:
        return self.network.decode(tokens, positions, state=state)

    def head(self, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        logits = self.network.head(features)
        if self.never:
            logits[..., self.never] = -torch.inf
        return logits

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.network.parameters()


class Seq2SeqModel(Writer):
    """A loaded encoder-decoder. `generate` gives what it writes about each text, from its first word to its last."""

    continues = False

    def __init__(self, loaded: Loaded):
        super().__init__(loaded)
        published = loaded.card.get("generation") or {}
        self._first = published.get("forced_bos_token_id") if self.config.first is None else self.config.first
        self.defaults = _defaults(published, 1 if self._first is None else 2)
        banned = published.get("bad_words_ids") or []
        self._never = [ids[0] for ids in banned if len(ids) == 1]  # Marian's padding, which its weights do not rule out
        ends = published.get("eos_token_id")
        own = loaded.tokenizer.stops if loaded.tokenizer else set()
        self._ends = own or {*(ends if isinstance(ends, list) else [ends])} - {None}

    @property
    def context(self) -> int | None:
        """How many tokens it reads, and may write; None where the architecture sets no end."""
        embed = getattr(self.config, "embed", None)
        learned = isinstance(getattr(embed, "position", None), LearnedPositionConfig)
        return self.config.context if learned else None

    def ids(self, prompt: Prompt) -> list[int]:
        """What the model reads of a text: all of it, with the tokens that belong around it.

        Where a text shows a gap, as <extra_id_0> or <mask>, that is a token and not some characters.
        """
        if not isinstance(prompt, str):
            return list(prompt)
        gaps = any(name in prompt for name in (SENTINEL.format(0), *MASKS))
        tokenizer = self.tokenizer
        return [*tokenizer.prefix, *tokenizer.encode(prompt, special=gaps), *tokenizer.suffix]

    def begin(self, prompt: Prompt, sampling: Sampling, copy: int = 0, context: int | None = None) -> Continuation:
        """A row to be written by `run` or `finish`. Ids are taken as they are; text gets what belongs around texts.

        A text longer than the model can read loses its end, which is said. With one seed, equal texts of equal `copy`
        are written about in equal words.
        """
        source = self.ids(prompt)
        if not source:
            raise UserError("a text to read has no tokens; give at least one")
        context = context or self.context
        if context is not None and len(source) > context:
            say(f"a text of {len(source):,} tokens loses its end: the model reads {context:,}")
            source = [*source[: context - 1], source[-1]]
        self._check(torch.tensor(source))
        start = self._beginning
        room = engine.budget(start, sampling.max_new_tokens, context)
        tokenizer = self._loaded.tokenizer
        stream = tokenizer.stream(gaps=True) if tokenizer else None  # or what stood in several would run together
        random = randomness(sampling, source, copy)
        return Continuation(start, room, self._ends, sampling.stop, stream, random, source)

    @property
    def _beginning(self) -> list[int]:
        """What every text that it writes begins with."""
        start = self.tokenizer.decoder_start if self.config.start is None else self.config.start
        return [start, *([] if self._first is None else [self._first])]

    def _network(self, rows: Sequence[Continuation]) -> Conditioned:
        return Conditioned(self._fast, [row.source or () for row in rows], self._never)


def _defaults(published: Mapping[str, Any], before: int) -> dict[str, Any]:
    """What a generation_config.json says that a text is to be written with, as options of Sampling.

    before: tokens that every text begins with, which its lengths count, or (`_new_tokens`) all but one of them.
    """
    found = {ours: published.get(theirs) for theirs, ours in OBEYED.items()}
    for side in ("min", "max"):
        length, new = published.get(f"{side}_length"), published.get(f"{side}_new_tokens")
        if new is not None:
            found[f"{side}_new_tokens"] = max(1 if side == "max" else 0, new - before + 1)
        elif length is not None:
            found[f"{side}_new_tokens"] = max(1 if side == "max" else 0, length - before)
    return {name: value for name, value in found.items() if value is not None}
