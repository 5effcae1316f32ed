"""Black-box tuning: a prompt is searched for by a model's answers alone (Sun et al. 2022, arXiv 2201.03514).

    soft    p = A z + p0, vectors in place of tokens: CMA-ES over z ∈ R^d; A_ij ~ N(0, (α σ_emb / (√d σ))²), fixed
    words   a sequence of words, by an evolutionary search; all that a service by text allows

A call is one candidate, put before every text that is learned from: what the budget counts, as the authors do.

    out/config.json   the settings            out/result.json   what was found, beside the bare template
    out/calls.jsonl   a line for every call   out/prompt/       the prompt itself (prompts.py)
    out/checkpoints/  the model with its soft prompt, for `onefold.load`

Resuming replays: the search proposes again what it proposed before and is told the losses in calls.jsonl, so it goes on
to the very bits. The same command continues in the same folder, also with more `calls`.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from onefold.adapt.prompts import PromptTuningConfig
from onefold.core.config import Config, Slot, differences
from onefold.core.device import pick
from onefold.core.errors import UserError
from onefold.core.files import atomic_folder, atomic_write, disk_error, locked, make_folder
from onefold.core.json_lines import read_rows
from onefold.core.progress import Progress, say
from onefold.data.text.labelled.text import LabelledTextData
from onefold.infer.evaluation.scores import Figure, share
from onefold.infer.label_words import ASKED, LabelWordsConfig, WordScorer, accuracy, label_loss, usual_words
from onefold.infer.model import Model, load
from onefold.infer.teaching.endpoint import Endpoint, EndpointConfig
from onefold.interop.adapted import Base, fingerprint, plain, trained
from onefold.interop.artifact import write_artifact
from onefold.interop.open import open_model
from onefold.interop.table import own_weights
from onefold.study.tuning.prompts import Prompts, SoftPromptConfig, SoftPrompts, WordPromptConfig
from onefold.study.tuning.search import digest
from onefold.training.interrupt import Interrupt

CALLS, RESULT = "calls.jsonl", "result.json"
FREE = {"out", "calls", "tokens", "device"}  # what may differ when a search goes on; the test is made at its end
FREE |= {f"endpoint.{name}" for name in ("parallel", "timeout", "attempts", "per_minute")}  # how a service is reached


class TuneConfig(Config):
    """A search. Of `model` and `endpoint` one is given."""

    kind: Literal["tune"] = "tune"
    model: str | None = None  # whatever `onefold.load` opens and goes on with texts
    endpoint: EndpointConfig | None = None
    data: str = "stdlib"  # rows of a text and its class, as LabelledTextData reads them…
    text: str | None = None  # …columns, None: by their usual names
    label: str | None = None
    validation: str | None = None  # another source to be judged by; None: rows held out
    template: str = LabelWordsConfig.model_fields["template"].default
    words: dict[str, str] | None = None  # class → word; others are left out. None: every class by its own name
    shots: Annotated[int, Field(ge=1)] = 16  # texts of each class to learn from, and as many others to choose by
    characters: Annotated[int, Field(ge=1)] = 1000  # of a text at most
    prompt: Annotated[SoftPromptConfig | WordPromptConfig, Slot()] = SoftPromptConfig()
    loss: Literal["cross_entropy", "hinge"] = "cross_entropy"
    margin: Annotated[float, Field(gt=0)] = 2.0  # of the hinge
    population: Annotated[int, Field(ge=4)] = 20
    calls: Annotated[int, Field(ge=1)] = 8000
    tokens: Annotated[int, Field(ge=1)] | None = None  # that may be read in all; None: any number
    evaluate_every: Annotated[int, Field(ge=1)] = 100  # calls: then the best so far is judged by the texts to choose by
    test: Annotated[int, Field(ge=0)] = 1000  # held-out texts that the result is judged by, at most
    device: str = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    out: Path = Path("runs/tune")

    @model_validator(mode="after")
    def _one_model(self) -> "TuneConfig":
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("give a model, or the endpoint of a service")
        if self.endpoint is not None and isinstance(self.prompt, SoftPromptConfig):
            raise ValueError("a service takes texts, no vectors: prompt=words")
        return self


@dataclass(frozen=True)
class Labelled:
    """Texts and their classes' places among all."""

    texts: list[str]
    labels: Tensor  # Long[N]


@dataclass(frozen=True)
class Measured:
    """What became of a candidate on some texts."""

    loss: float
    accuracy: float
    tokens: int


@dataclass(frozen=True)
class TuneResult:
    """What a search found. Figures are of texts that nothing was chosen by; None where there are none, or not yet."""

    config: TuneConfig = field(repr=False)
    status: str  # "finished" or "interrupted"
    calls: int
    tokens: int
    loss: float  # of the prompt that was chosen, on the texts to choose by
    tuned: Figure | None = None
    bare: Figure | None = None  # the template without a prompt
    tested: int = 0  # texts
    prompt: str = ""  # what to tell of it; it lies in out/prompt

    @property
    def out(self) -> Path:
        return self.config.out


def tune(config: TuneConfig, key: str | None = None) -> TuneResult:
    """Search, or go on where a search stopped. key: of the endpoint, which is nowhere saved.

    Errors: UserError for what the user can mend; what was measured by then stays in `config.out`.
    """
    make_folder(config.out)
    with locked(
        config.out / ".lock", f"another process searches in {config.out} now; wait for it, or give another out="
    ):
        _claim(config)
        asked, learned, chosen, test = few_shots(config)
        model = _model(config, asked, key)
        prompts = config.prompt.build(model, learned.texts, config.population, config.seed)
        with (
            closing(Journal(config.out / CALLS, _recognised(model, learned, chosen))) as journal,
            Interrupt() as interrupt,
        ):
            search = Tuning(config, prompts, journal, learned, chosen)
            try:
                status = search.run(interrupt)
                result = _judged(config, search, status, model, test)
            except UserError as error:
                kept = f"\n{len(journal.calls)} calls are kept in {config.out}" if journal.calls else ""
                raise UserError(f"{error}{kept}") from None
    told = {
        "finished": f"finished after {result.calls:,} calls: {config.out}",
        "interrupted": f"stopped after {result.calls:,} calls; the same command goes on from there",
    }
    say(told[status])
    return result


def few_shots(config: TuneConfig) -> tuple[LabelWordsConfig, Labelled, Labelled, Labelled]:
    """(how is asked, texts to learn from, texts to choose by, texts to be judged by), drawn by the seed.

    Raises UserError where a class has too few, or none.
    """
    rows = LabelledTextData(path=config.data, text=config.text, label=config.label, validation=config.validation)
    examples = rows.examples()
    known = sorted({example.label for example in examples})
    words = config.words or usual_words(known)
    if strange := [name for name in words if name not in known]:
        raise UserError(f"words: {config.data} has no class {strange[0]!r}; it has {', '.join(known[:8])}")
    asked = LabelWordsConfig.from_dict({"template": config.template, "words": words})
    random = np.random.default_rng(config.seed)
    parts: list[list[tuple[str, int]]] = [[], [], []]
    for place, name in enumerate(asked.classes):
        own = [e.text for e in examples if e.label == name and e.split == "train" and e.text.strip()]
        if len(own) < 2 * config.shots:
            raise UserError(
                f"{config.data} has {len(own)} texts of {name!r} to learn from; 2 × {config.shots} are needed"
            )
        order = random.permutation(len(own))
        for part, some in zip(parts, (order[: config.shots], order[config.shots : 2 * config.shots])):
            part += [(own[i], place) for i in some]
    held = [(e.text, asked.classes.index(e.label)) for e in examples if e.split == "held_out" and e.label in words]
    parts[2] = [held[i] for i in sorted(random.permutation(len(held))[: config.test])]
    cut = [[(text[: config.characters], place) for text, place in part] for part in parts]
    sets = [Labelled([t for t, _ in part], torch.tensor([n for _, n in part], dtype=torch.long)) for part in cut]
    return asked, *sets


class Journal:
    """The lines of calls.jsonl: `calls` in order, and what the texts to choose by said, by the number of calls before.

    The first line says what was measured on; a last one that a crash cut off is dropped. Raises UserError where another
    line is damaged, and where the journal is of other texts, or of another model.
    """

    def __init__(self, path: Path, about: str):
        self.path, self.about = path, about
        self.calls: list[dict[str, Any]] = []
        self.chosen: dict[int, dict[str, Any]] = {}
        self._file: IO[str] | None = None
        for record in read_rows(path):
            if record.get("about", about) != about:
                raise UserError(f"the texts or the model have changed since {path.parent} was begun: give another out=")
            self._note(record)
        self.keep(len(self.calls))

    def keep(self, calls: int) -> None:
        """Drop all that came behind the first so many calls."""
        self.calls = self.calls[:calls]
        self.chosen = {after: record for after, record in self.chosen.items() if after <= calls}
        lines: list[dict[str, Any]] = [{"about": self.about}]
        for n, call in enumerate([None, *self.calls]):
            lines += [one for one in (call, self.chosen.get(n)) if one]
        atomic_write(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        if self._file:
            self._file.close()
        self._file = self.path.open("a")

    def write(self, records: list[dict[str, Any]]) -> None:
        """All of them in one go, as far as a file system does that."""
        assert self._file is not None
        try:
            self._file.write("".join(json.dumps(record) + "\n" for record in records))
            self._file.flush()
        except OSError as error:
            raise disk_error(self.path, error) from error
        for record in records:
            self._note(record)

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _note(self, record: dict[str, Any]) -> None:
        if "chosen_after" in record:
            self.chosen[record["chosen_after"]] = record
        elif "about" not in record:
            self.calls.append(record)


class Tuning:
    """The loop: ask for a generation, measure it, tell; every so often the best so far is put to other texts."""

    def __init__(self, config: TuneConfig, prompts: Prompts, journal: Journal, learned: Labelled, chosen: Labelled):
        self.config, self.prompts, self.journal = config, prompts, journal
        self.learned, self.chosen = learned, chosen
        self.judged: np.ndarray | None = None  # the last of them
        self.done = self.tokens = 0
        self.best: tuple[float, np.ndarray] | None = None  # on the texts learned from
        self.winner: tuple[float, np.ndarray] | None = None  # on the texts to choose by

    def run(self, interrupt: Interrupt) -> str:
        """To the end of the budget, in whole generations, or until a person stops it; which of both."""
        config, journal = self.config, self.journal
        if journal.calls:
            say(f"going on in {config.out} from call {len(journal.calls):,} of {config.calls:,}")
        with Progress("searching", config.calls, "calls", len(journal.calls)) as bar:
            while not self._spent():
                candidates = self.prompts.search.ask()
                losses = self._known(candidates)
                for loss in self._measured(candidates[len(losses) :], bar):
                    losses.append(loss)
                    if interrupt.requested and not self.prompts.together and len(losses) < len(candidates):
                        return "interrupted"
                self.prompts.search.tell(candidates, losses)
                self.tokens += sum(record["tokens"] for record in journal.calls[self.done :][: len(candidates)])
                loss, place = min(zip(losses, range(len(losses))))
                if self.best is None or loss < self.best[0]:
                    self.best = (loss, candidates[place])
                before, self.done = self.done, self.done + len(candidates)
                if self.done // config.evaluate_every > before // config.evaluate_every:
                    self._choose()
                bar.update(0, loss=self.best[0], **({"chosen": self.winner[0]} if self.winner else {}))
                if interrupt.requested and not self._spent():
                    return "interrupted"
        self._choose()
        return "finished"

    def measure(self, candidates: list[np.ndarray], some: Labelled) -> Iterator[Measured]:
        """Each candidate in order, as it comes."""
        config = self.config
        for scores, tokens in self.prompts.measure(candidates, some.texts):
            loss = label_loss(scores, some.labels, config.loss, config.margin)
            yield Measured(loss.item(), accuracy(scores, some.labels).item(), tokens)

    def _known(self, candidates: list[np.ndarray]) -> list[float]:
        """What the journal knows of these candidates: all of it, or, of a service, as far as it came."""
        journal = self.journal
        known = journal.calls[self.done : self.done + len(candidates)]
        if known and self.prompts.together and len(known) < len(candidates):
            journal.keep(self.done)  # what is computed at once is measured at once: its rounding might differ
            known = []
        for record, candidate in zip(known, candidates):
            if record["asked"] != digest(candidate):
                raise UserError(
                    f"{journal.path} was written on another machine, with other threads (OMP_NUM_THREADS), or by other "
                    "versions of cma and numpy: go on as it was begun, or give another out="
                )
        return [record["loss"] for record in known]

    def _measured(self, candidates: list[np.ndarray], bar: Progress) -> Iterator[float]:
        """The losses of candidates, each written down as it comes, or all together where they are computed so."""
        records: list[dict[str, Any]] = []
        for candidate, measured in zip(candidates, self.measure(candidates, self.learned)):
            if not np.isfinite(measured.loss):
                raise UserError("the loss is no number: the model gives none for these texts")
            records.append({"asked": digest(candidate), **asdict(measured)})
            if not self.prompts.together or len(records) == len(candidates):
                self.journal.write(records)
                bar.update(len(records))
                yield from (record["loss"] for record in records)
                records = []

    def _choose(self) -> None:
        """Put the best so far to the texts to choose by, and keep it if it is the best there, too."""
        if self.best is None or self.best[1] is self.judged:
            return
        self.judged = self.best[1]
        if self.done not in self.journal.chosen:
            (found,) = self.measure([self.best[1]], self.chosen)
            self.journal.write([{"chosen_after": self.done, "asked": digest(self.best[1]), **asdict(found)}])
        record = self.journal.chosen[self.done]
        self.tokens += record["tokens"]
        if self.winner is None or record["loss"] < self.winner[0]:
            self.winner = (record["loss"], self.best[1])

    def _spent(self) -> bool:
        """Another generation would exceed the calls, or the tokens are used up; the first is always made."""
        config = self.config
        over = config.tokens is not None and self.tokens >= config.tokens
        return self.done > 0 and (over or self.done + config.population > config.calls)


def _model(config: TuneConfig, asked: LabelWordsConfig, key: str | None) -> WordScorer | Endpoint:
    if config.endpoint is not None:
        return Endpoint(config.endpoint, asked, key)
    opened = load(str(config.model), device=pick(config.device))
    if not isinstance(opened, Model):
        raise UserError(f"{config.model} does not go on with texts: tune a decoder (GPT-2, Llama, …)")
    return WordScorer(opened, asked)


def _claim(config: TuneConfig) -> None:
    """Raises UserError where the folder holds something else, or another search that has come somewhere."""
    file = config.out / "config.json"
    if file.exists():
        try:
            before = TuneConfig.from_json(file.read_text(), str(file))
        except (OSError, UserError):
            raise UserError(f"{config.out} holds something else; give another out=") from None
        both = differences(before.to_dict(), config.to_dict())
        changes = {name: values for name, values in both.items() if name not in FREE}
        if (config.out / CALLS).exists() and changes:
            told = ", ".join(f"{name} ({old!r} there, {new!r} here)" for name, (old, new) in list(changes.items())[:4])
            raise UserError(f"{config.out} holds another search; it differs in {told}. Give another out=")
    atomic_write(file, config.to_json() + "\n")


def _recognised(model: WordScorer | Endpoint, *some: Labelled) -> str:
    """A short hash of the texts, their classes and the model (of a service we only know its name)."""
    hashed = blake2b(json.dumps([[part.texts, part.labels.tolist()] for part in some]).encode(), digest_size=8)
    if isinstance(model, WordScorer):
        for weight in own_weights(model.network).values():
            hashed.update(fingerprint(weight).encode())
    return hashed.hexdigest()


def _judged(
    config: TuneConfig, search: Tuning, status: str, model: WordScorer | Endpoint, test: Labelled
) -> TuneResult:
    """The result of a search that came to its end, with the prompt written down and judged."""
    result = TuneResult(config, status, search.done, search.tokens, search.winner[0] if search.winner else np.inf)
    if status != "finished" or search.winner is None:
        return result
    file = config.out / RESULT
    if file.exists() and (told := json.loads(file.read_text()))["calls"] == search.done:
        figures = {name: told[name] and Figure(**told[name]) for name in ("tuned", "bare")}
        return replace(result, prompt=told["prompt"], tested=told["tested"], **figures)
    said, tested = search.prompts.write(config.out / "prompt", search.winner[1]), len(test.texts)
    result = replace(result, prompt=said, tested=tested)
    if tested:
        (tuned,) = search.measure([search.winner[1]], test)
        ((bare, _),) = model.ask([""], test.texts)
        rights = [round(share_right * tested) for share_right in (tuned.accuracy, accuracy(bare, test.labels).item())]
        result = replace(result, **{n: share("accuracy", k, tested) for n, k in zip(("tuned", "bare"), rights)})
    if isinstance(search.prompts, SoftPrompts):
        _save(config, search.prompts, search.winner[1], _told(result))
    atomic_write(file, json.dumps(_told(result), indent=1) + "\n")  # last: with it all is there
    return result


def _save(config: TuneConfig, prompts: SoftPrompts, winner: np.ndarray, told: dict[str, Any]) -> None:
    """The prompt as an adapter of the model, which `onefold.load` opens and `classify` asks."""
    opened = plain(open_model(str(config.model)), str(config.model))
    base, step = Base.of(str(config.model), opened, {}), PromptTuningConfig(length=prompts.config.tokens)
    try:
        step.apply(opened.model)
    except UserError as error:
        say(f"{error}: the vectors are in {config.out / 'prompt'} alone")
        return
    with torch.no_grad():
        (vectors,) = (p for p in opened.model.parameters() if p.requires_grad)
        vectors.copy_(prompts.vectors([winner])[0] * opened.model.embed.scale)
    card = {**opened.card, "tune": told, ASKED: prompts.model.asked.to_dict(), "room": prompts.config.tokens}
    more = {"adapt": [step.to_dict()]}
    with atomic_folder(config.out / "checkpoints" / str(told["calls"])) as folder:
        more["base"] = base.told(folder)
        write_artifact(folder, opened.config, trained(opened.model), opened.tokenizer, card, more=more)


def _told(result: TuneResult) -> dict[str, Any]:
    names = ("calls", "tokens", "loss", "prompt", "tested", "tuned", "bare")
    values = {name: getattr(result, name) for name in names}
    return {name: asdict(value) if isinstance(value, Figure) else value for name, value in values.items()}
