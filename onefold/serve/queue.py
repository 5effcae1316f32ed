"""A bounded line in front of one worker thread that owns the model: requests are answered one after another."""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from onefold.core.errors import UserError
from onefold.data.text.chat.messages import chat_ids
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.sampling import Sampling
from onefold.infer.writer import Writer
from onefold.serve.engine import About, Job, Limits, Piece, Refusal, Spelled

log = logging.getLogger(__name__)


class Queue:
    """The engine that answers one job at a time."""

    def __init__(self, model: Writer, name: str, limits: Limits | None = None):
        self.limits = limits or Limits()
        takes_turns = bool(model.tokenizer.chat_template)
        self._model, self._usual = model, model.adapter
        self.about = About(
            name,
            model.parameters_count,
            model.context,
            takes_turns,
            int(time.time()),
            adapters={own: model.context_with(own) for own in model.adapters if own != self._usual},
        )
        self._change = threading.Condition()
        self._line: deque[QueuedAnswer] = deque()
        self._running: QueuedAnswer | None = None
        self._preparing = 0
        self._closed = False
        self._typical_seconds = 2.0  # of one answer, a running average; tells refused clients when to come back
        self._worker = threading.Thread(target=self._work, name="onefold-model", daemon=True)
        self._worker.start()

    async def submit(self, job: Job) -> "QueuedAnswer":
        with self._change:
            self._refuse_when_full()
            self._preparing += 1  # holds a place, so that a flood is refused before its prompts are encoded
        try:
            row, sampling = await asyncio.to_thread(self._prepare, job)
        except UserError as error:
            raise Refusal(400, str(error)) from None
        finally:
            with self._change:
                self._preparing -= 1
        answer = QueuedAnswer(self, row, sampling, job.adapter)
        with self._change:
            if self._closed:
                raise _closing()
            self._line.append(answer)
            self._change.notify()
        return answer

    def load(self) -> dict[str, int]:
        with self._change:
            return {"running": int(self._running is not None), "waiting": len(self._line) + self._preparing}

    def close(self, wait: float = 0.0) -> None:
        with self._change:
            self._closed = True
            answers = [*self._line, *([self._running] if self._running else [])]
            self._line.clear()
            self._change.notify_all()
        for answer in answers:
            answer.end(_closing())
        if wait:
            self._worker.join(timeout=wait)

    def withdraw(self, answer: "QueuedAnswer") -> None:
        """Give up the place of an answer that nobody waits for any more."""
        with self._change, suppress(ValueError):
            self._line.remove(answer)

    def _refuse_when_full(self) -> None:
        if self._closed:
            raise _closing()
        waiting = len(self._line) + self._preparing
        if waiting >= self.limits.waiting + (self._running is None):
            seconds = max(1, math.ceil(self._typical_seconds * (waiting + 1) / 2))  # by then half the line is gone
            text = f"{waiting} requests are waiting already; try again in {seconds} s"
            raise Refusal(429, text, "rate_limit_error", "rate_limit_exceeded", retry_after=min(seconds, 120))

    def _prepare(self, job: Job) -> tuple[Continuation, Sampling]:
        """The job as the model takes it: ids, how many tokens may follow, and how they are chosen."""
        tokenizer, limits = self._model.tokenizer, self.limits
        context = self.about.adapters[job.adapter] if job.adapter else self.about.context
        prompt = chat_ids(job.messages, tokenizer) if job.messages is not None else job.prompt or ""
        length = len(self._model.ids(prompt))
        allowed = min((most for most in (limits.prompt_tokens, context) if most is not None), default=length)
        if length > allowed:
            why = "the model's context" if allowed == context else "the server's limit"
            text = f"the prompt has {length:,} tokens; at most {allowed:,} fit ({why})"
            param = "prompt" if job.messages is None else "messages"
            raise Refusal(400, text, code="context_length_exceeded", param=param)
        wanted = min(job.max_tokens or limits.default_tokens, limits.max_tokens)
        sampling = Sampling.from_dict({"temperature": 1.0, **job.sampling, "max_new_tokens": wanted})
        row = self._model.begin(prompt, sampling, context=context)  # another adapter may be at work now
        row.top = job.logprobs
        return row, sampling

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._line or self._closed)
                if self._closed:
                    return
                answer = self._running = self._line.popleft()
            began = time.monotonic()
            try:
                self._answer(answer)
            except UserError as error:
                answer.end(Refusal(400, str(error)))
            except Exception:
                log.exception("the model failed on a request")
                answer.end(Refusal(500, "the model failed on this request; the server's log says why", "server_error"))
            finally:
                with self._change:
                    self._running = None
                    self._typical_seconds += 0.2 * (time.monotonic() - began - self._typical_seconds)

    def _answer(self, answer: "QueuedAnswer") -> None:
        row = answer.row
        self._model.use(answer.adapter or self._usual)
        for _ in self._model.run([row], answer.sampling):
            if answer.cancelled:
                return
            if (text := row.take()) or row.finish:
                answer.push(Piece(text, len(row.ids), row.finish, self._spelled(row) if row.finish else ()))

    def _spelled(self, row: Continuation) -> tuple[Spelled, ...]:
        """The tokens that were noted, as they read where they stand: alone, some would lose the blank before them."""
        decode, found, before = self._model.tokenizer.decode, [], row.prompt[-1]
        for token, logprob, top in row.noted:
            skip, texts = len(decode([before], special=True)), {}
            for one, value in top:  # the likeliest first: of tokens that read alike it counts
                texts.setdefault(decode([before, one], special=True)[skip:], value)
            found.append(Spelled(decode([before, token], special=True)[skip:], logprob, texts))
            before = token
        return tuple(found)


class QueuedAnswer:
    """One answer on its way from the worker thread to the event loop that asked for it."""

    def __init__(self, queue: Queue, row: Continuation, sampling: Sampling, adapter: str | None = None):
        self.row, self.sampling, self.adapter, self.prompt_tokens = row, sampling, adapter, row.read
        self.cancelled = False
        self._queue = queue
        self._seconds = queue.limits.answer_seconds
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + self._seconds
        # Holds at most `row.budget` pieces, so it needs no bound, and a slow reader never holds up the worker.
        self._pieces: asyncio.Queue[Piece | Refusal] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            while True:
                async with asyncio.timeout_at(self._deadline):
                    piece = await self._pieces.get()
                if isinstance(piece, Refusal):
                    raise piece
                yield piece
                if piece.finish:
                    return
        except TimeoutError:
            text = f"not answered within {self._seconds:g} s; ask for fewer tokens or stream"
            raise Refusal(504, text, "server_error", "timeout") from None
        finally:
            self.cancel()

    def cancel(self) -> None:
        self.cancelled = True
        self._queue.withdraw(self)

    def push(self, piece: Piece | Refusal) -> None:
        """From the worker thread."""
        with suppress(RuntimeError):  # the event loop is gone, and with it whoever asked
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def end(self, refusal: Refusal) -> None:
        self.cancelled = True
        self.push(refusal)


def _closing() -> Refusal:
    return Refusal(503, "the server is shutting down", "server_error", "shutting_down", retry_after=5)
