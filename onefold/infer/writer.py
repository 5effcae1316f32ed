"""What all models that write text have in common, whatever they read before: one loop, one search, one kind of row."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, overload

from torch import Tensor, nn

from onefold.adapt.merge import can_be_merged, merge_active
from onefold.adapt.surgery import switch_of
from onefold.core.errors import UserError
from onefold.infer.generation import engine
from onefold.infer.generation.beam import beam_search
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.early_exit import EarlyExit
from onefold.infer.generation.few_rows import for_decoding, to_spare
from onefold.infer.generation.sampling import Sampling
from onefold.infer.generation.speculative import Speculation
from onefold.infer.opened import OpenedText
from onefold.interop.loaded import Loaded

Prompt = str | Sequence[int]  # text, or ids as they are
PAYS = 16  # tokens from which on merging an adapter costs less than having it beside the weights


class Writer(OpenedText, ABC):
    """A loaded model that writes. Options of `generate` and `stream` are the fields of `infer.sampling.Sampling`:

    max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop,
    no_repeat_ngram_size, min_new_tokens, beams, length_penalty, length_norm.

    `defaults`: those that the model's publishers give.
    """

    continues: ClassVar[bool]  # whether what it writes goes on where the prompt stopped

    def __init__(self, loaded: Loaded):
        super().__init__(loaded)
        self.defaults: dict[str, Any] = {}
        self._fast = for_decoding(self.network)
        self.speculation: Speculation | None = None  # a draft that single texts are written faster with
        self.early_exit: EarlyExit | None = None  # the model, of which tokens leave early

    @property
    @abstractmethod
    def context(self) -> int | None:
        """How many tokens it can read; None where the architecture sets no end."""

    def context_with(self, adapter: str | None) -> int | None:
        """`context` as it is when this adapter is at work."""
        return self.context

    @abstractmethod
    def ids(self, prompt: Prompt) -> list[int]:
        """What the model reads of a prompt."""

    @abstractmethod
    def begin(self, prompt: Prompt, sampling: Sampling, copy: int = 0, context: int | None = None) -> Continuation:
        """A row to be written by `run` or `finish`. Ids are taken as they are; text gets what belongs around texts.

        With one seed, equal prompts of equal `copy` become equal texts. context: None: that of now.
        """

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[str]: ...
    def generate(self, prompt, **options):
        """What the model writes about each prompt; greedy unless `temperature` is given.

        A list is answered in one batch, each text as if its prompt stood alone. Ends at an end-of-text token, a stop
        string (not part of the text), `max_new_tokens`, or the end of the context.
        """
        sampling = self.sampling(options)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = self.begin_all(prompts, sampling)
        self.finish(rows, sampling)
        return rows[0].text if isinstance(prompt, str) else [row.text for row in rows]

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """`generate`, in pieces as they become certain."""
        sampling = self.sampling(options)
        return self._pieces(self.begin(prompt, sampling), sampling)

    def sampling(self, options: Mapping[str, Any]) -> Sampling:
        """The options of `generate` with the model's own defaults: its beams only where beams can do what is asked."""
        given = Sampling.from_dict(options)
        defaults = dict(self.defaults)
        if not given.greedy or given.repetition_penalty != 1.0:
            defaults.pop("beams", None)
        return Sampling.from_dict(defaults | options)

    def speculate(self, draft: Any) -> None:
        """Write single texts faster with a draft. Raises UserError where nothing but a continuation can be drafted."""
        raise UserError("only models that continue a text take a draft")

    def leave_early(self, rule: Any) -> None:
        """Let tokens leave the model early. Raises UserError where nothing but a continuation can."""
        raise UserError("only models that continue a text can be left early")

    # The parts of `generate`, for those who schedule rows themselves (servers, roll-outs).

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
        """Write the rows, a token a step each (with a draft several); close the iterator to stop early."""
        take_in(self.network, rows)
        if sampling.beams > 1:
            self.finish(rows, sampling)
            return iter((None,))
        if self.speculation is not None and self.speculation.serves(rows, sampling):
            return self.speculation.generate(self._network(rows), rows[0], sampling)
        return engine.generate(self.early_exit or self._network(rows), rows, sampling)

    def finish(self, rows: Sequence[Continuation], sampling: Sampling) -> None:
        """Write the rows to their ends."""
        if not rows:
            return
        take_in(self.network, rows)
        if sampling.beams == 1:
            for _ in self.run(rows, sampling):
                pass
            return
        prompts, budgets = [row.prompt for row in rows], [row.budget for row in rows]
        counted = 0 if self.continues else len(prompts[0]) - 1  # what every text begins with is a part of it
        found = beam_search(self._network(rows), prompts, budgets, sampling, rows[0].ends, counted)
        for row, (best, *_) in zip(rows, found):
            row.write(best.ids, best.finish)

    @abstractmethod
    def _network(self, rows: Sequence[Continuation]) -> Any:
        """What the engine is to run for these rows."""

    def _pieces(self, row: Continuation, sampling: Sampling) -> Iterator[str]:
        for _ in self.run([row], sampling):
            if piece := row.take():
                yield piece

    def _check(self, ids: Tensor) -> None:
        vocab = self.config.vocab
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
            raise UserError(f"token ids must lie between 0 and {vocab - 1}; found {int(ids.min())} to {int(ids.max())}")


def take_in(network: nn.Module, rows: Sequence[Continuation]) -> None:
    """Merge the only adapter into the weights until `switch.unmerge()`, where so much is to be written that it pays."""
    switch = switch_of(network)
    if len(switch.names) != 1 or switch.beside is None or max((row.budget for row in rows), default=0) < PAYS:
        return
    if can_be_merged(network, to_spare()):
        merge_active(network)
