"""Teachers: whatever answers conversations, a model that is loaded here or a service that is reached by HTTP."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

from onefold.core.errors import UserError
from onefold.core.json_lines import valid_text
from onefold.core.progress import say
from onefold.data.text.chat.messages import Message, chat_ids
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model, as_writer, load
from onefold.infer.teaching.endpoint import EndpointConfig, Refused, Service
from onefold.infer.writer import Writer

SORTED_TOGETHER = 16  # batches that are sorted by length, so that little is padded
MOST_REFUSED = 8  # prompts in the beginning, after which it is not the prompts
NOWHERE = "the prompt"  # where nobody says which
UNDERSTOOD = {"max_new_tokens", "temperature", "top_p", "seed", "stop"}  # by services

T = TypeVar("T")


class Asked(NamedTuple):
    """A conversation to go on with. Equal ones of another `copy` get another answer, where answers are drawn."""

    messages: Sequence[Message]
    copy: int = 0
    place: str = NOWHERE  # to tell mistakes by


class Written(NamedTuple):
    """An answer, and why it ends: "stop", "length", "refused" (a prompt that is not taken), or what a service says."""

    text: str
    finish: str

    @property
    def taken(self) -> bool:
        return self.finish != "refused"


class Teacher(Protocol):
    """`name` tells teachers apart."""

    name: str

    def answer(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        """(which one, the answer) as they come. Raises UserError when no more come, after all that do."""
        ...


class NoneTaken(UserError):
    """A teacher takes nothing of what it is asked; `passed`: it as empty answers, if that is no reason to give up."""

    def __init__(self, told: str, passed: Iterable[tuple[int, Written]] = ()):
        super().__init__(told)
        self.passed = passed


class Refusals:
    """Prompts that a teacher does not take: told and passed over, as long as there are others that it does."""

    def __init__(self, asked: Sequence[Asked]):
        self.asked, self.others = asked, False
        self._held: list[tuple[int, Exception]] = []
        self._told = ""

    def begun(self, some: Iterable[int], begin: Callable[[Asked], T]) -> dict[int, T]:
        """What `begin` makes of some of them, but of those that it refuses. Errors: UserError when it takes none."""
        found = {}
        for which in some:
            try:
                found[which] = begin(self.asked[which])
                self.others = True
            except UserError as error:
                if failed := self.add(which, error):
                    raise failed from None
        return found

    def add(self, which: int, error: Exception) -> UserError | None:
        """What to give up with, if it takes none. Questions about one prompt count as one."""
        self._held.append((which, error))
        places = [self.asked[held].place for held, _ in self._held]
        if self.others or len(set(places) - {NOWHERE}) + places.count(NOWHERE) < MOST_REFUSED:
            return None
        told = f"{places[0]}: {self._held[0][1]}\nNone of the first {MOST_REFUSED} prompts is taken"
        return NoneTaken(told, self.passed())

    def passed(self) -> Iterator[tuple[int, Written]]:
        """Those since the last call, as empty answers."""
        while self._held:
            which, error = self._held.pop(0)
            told = f"{self.asked[which].place}: {error}; passed over"
            if told != self._told:
                say(told)
            self._told = told
            yield which, Written("", "refused")


def answers(
    teacher: Teacher, left: Mapping[str, Asked], sampling: Sampling, taken: bool
) -> Iterator[tuple[str, Written]]:
    """(name, answer) as they come. Who takes anything (taken: before now) is asked on, whatever it refuses."""
    while left:
        names, done = list(left), set()
        try:
            for which, written in teacher.answer(list(left.values()), sampling):
                taken = taken or written.taken
                done.add(names[which])
                yield names[which], written
            return
        except NoneTaken as error:
            if not taken:
                raise
            for which, written in error.passed:
                done.add(names[which])
                yield names[which], written
        left = {name: one for name, one in left.items() if name not in done}


def open_teacher(
    name: str, key: str | None = None, device: str = "cpu", batch: int = 16, **settings: Any
) -> "ModelTeacher | ServiceTeacher":
    """What `onefold.load` opens, or, of an address, the service there; `key` and `settings` (EndpointConfig) are its.

    An address may end in # and the name of one of the service's models. Raises UserError when it does not chat.
    """
    if "://" in name:
        url, _, model = name.partition("#")
        named = {"model": model} if model else {}
        if "url" in settings:  # its key was chosen by the other
            raise UserError(f"url={settings['url']} is another address than {url}: give one")
        return ServiceTeacher(EndpointConfig.from_dict({"url": url, **named, **settings}), key)
    if settings:
        raise UserError(f"{next(iter(settings))} is a setting of services, and {name} is a model")
    return as_teacher(as_writer(load(name, device), name), name, batch)


def as_teacher(model: Writer, name: str, batch: int = 16) -> "ModelTeacher":
    """A model that was opened from `name`. Raises UserError when it does not chat."""
    if not isinstance(model, Model):
        raise UserError(f"{name} writes one text about another; a teacher is a model that chats")
    return ModelTeacher(model, name, batch)


class LazyTeacher:
    """A model that is opened when it is first asked, and again after it was closed."""

    def __init__(self, name: str, device: str = "cpu", batch: int = 16):
        self.name, self._open = name, partial(open_teacher, name, None, device, batch)
        self._opened: Teacher | None = None

    def answer(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        self._opened = self._opened or self._open()
        return self._opened.answer(asked, sampling)

    def close(self) -> None:
        self._opened = None


class ModelTeacher:
    """A model that chats, `batch` conversations at a time."""

    def __init__(self, model: Model, name: str, batch: int = 16):
        if batch < 1:
            raise UserError(f"batch must be at least 1, not {batch}")
        self.model, self.name, self.batch = model, name, batch

    def answer(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        refusals = Refusals(asked)
        for start in range(0, len(asked), self.batch * SORTED_TOGETHER):
            some = range(start, min(len(asked), start + self.batch * SORTED_TOGETHER))
            rows = refusals.begun(some, lambda one: self._begin(one, sampling))
            if refusals.others:
                yield from refusals.passed()
            order = sorted(rows, key=lambda i: -rows[i].read)
            for first in range(0, len(order), self.batch):
                batch = order[first : first + self.batch]
                self.model.finish([rows[i] for i in batch], sampling)
                yield from ((i, Written(rows[i].text, str(rows[i].finish))) for i in batch)
        yield from refusals.passed()

    def _begin(self, asked: Asked, sampling: Sampling):
        return self.model.begin(chat_ids(asked.messages, self.model.tokenizer), sampling, asked.copy)


class ServiceTeacher:
    """A service of OpenAI's /v1/chat/completions."""

    def __init__(self, config: EndpointConfig, key: str | None = None):
        self.service = Service(config, key)
        self.name = f"{config.model} at {self.service.base}" if config.model else self.service.base

    def answer(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        bodies, refusals = self._bodies(asked, sampling), Refusals(asked)
        parallel, failed = self.service.config.parallel, None
        jobs: dict[Future[Written], int] = {}
        with self.service.asking() as pool:
            while True:
                if failed is None:
                    for i, body in islice(bodies, 2 * parallel - len(jobs)):
                        jobs[pool.submit(self.service.post, "/v1/chat/completions", body, _said)] = i
                if not jobs:
                    break
                for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                    i = jobs.pop(job)
                    if job.cancelled():
                        continue
                    if error := job.exception():
                        failed = failed or (refusals.add(i, error) if isinstance(error, Refused) else error)
                        for other in jobs if failed else ():  # those under way may still bring something
                            other.cancel()
                        continue
                    refusals.others = True
                    yield i, job.result()
                if refusals.others:
                    yield from refusals.passed()
        if failed:
            raise failed
        yield from refusals.passed()

    def _bodies(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, dict[str, Any]]]:
        given, usual = sampling.to_dict(), Sampling().to_dict()
        if other := [name for name in given if given[name] != usual[name] and name not in UNDERSTOOD]:
            raise UserError(f"a service does not know {other[0]}; it takes {', '.join(sorted(UNDERSTOOD))}")
        body = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        body |= {"top_p": sampling.top_p} if sampling.top_p is not None else {}
        body |= {"stop": list(sampling.stop)} if sampling.stop else {}
        for i, one in enumerate(asked):
            seeded = {"seed": sampling.seed + one.copy} if sampling.seed is not None else {}
            yield i, {"messages": [_sent(message) for message in one.messages], **body, **seeded}


def _sent(message: Message) -> dict[str, Any]:
    return {name: message[name] for name in ("role", "content")}


def _said(answer: Mapping[str, Any]) -> Written:
    try:
        choice = answer["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        text = finish = None
    if text is None and isinstance(finish, str):  # as where a service's filter keeps everything back
        text = ""
    if not isinstance(text, str):
        raise ValueError("it answers with no text of an assistant: does it know /v1/chat/completions?")
    return Written(valid_text(text), str(finish or "stop"))
