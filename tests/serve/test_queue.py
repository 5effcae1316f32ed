"""The line in front of the model: bounded, in order, and freed at once by whoever leaves."""

import asyncio
import threading
import time

import pytest

from onefold.serve.engine import Job, Limits, Refusal
from tests.serve.conftest import wait_until


def job(text: str = "hi", **more) -> Job:
    return Job(messages=({"role": "user", "content": text},), **more)


async def whole(answer) -> str:
    return "".join([piece.text async for piece in answer])


class Gate:
    """A script that waits until it is opened, so that a test decides how long the model is busy."""

    def __init__(self):
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, text: str) -> str:
        self.entered.set()
        assert self.open.wait(10)
        return "done"


def test_jobs_are_answered_in_order(make_queue):
    queue = make_queue(script=lambda text: text.split("<|user|>")[1].split("<|end|>")[0])

    async def run():
        answers = [await queue.submit(job(f"number {n}")) for n in range(5)]
        return await asyncio.gather(*map(whole, answers))

    assert asyncio.run(run()) == [f"number {n}" for n in range(5)]
    assert [read.count(f"number {n}") for n, read in enumerate(queue.seen.prompts)] == [1] * 5


def test_a_full_line_refuses_at_once_and_says_when_to_come_back(make_queue):
    gate = Gate()
    queue = make_queue(Limits(waiting=2), script=gate)

    async def run():
        running = await queue.submit(job())
        await asyncio.to_thread(gate.entered.wait)
        waiting = [await queue.submit(job()) for _ in range(2)]
        assert queue.load() == {"running": 1, "waiting": 2}
        with pytest.raises(Refusal) as refused:
            await queue.submit(job())
        assert refused.value.status == 429
        assert 1 <= refused.value.retry_after <= 120
        gate.open.set()
        assert await asyncio.gather(*map(whole, [running, *waiting])) == ["done"] * 3
        return await whole(await queue.submit(job()))

    assert asyncio.run(run()) == "done"


def test_who_leaves_the_line_frees_the_place_and_is_never_run(make_queue):
    gate = Gate()
    queue = make_queue(Limits(waiting=1), script=gate)

    async def run():
        running = await queue.submit(job("first"))
        await asyncio.to_thread(gate.entered.wait)
        gone = await queue.submit(job("gone"))
        gone.cancel()
        last = await queue.submit(job("last"))
        gate.open.set()
        await asyncio.gather(whole(running), whole(last))

    asyncio.run(run())
    assert ["gone" in read for read in queue.seen.prompts] == [False, False]


def test_cancelling_a_running_answer_stops_the_model(make_queue):
    queue = make_queue(script="word " * 40, delay=0.02)

    async def run():
        answer = await queue.submit(job())
        async for _ in answer:
            break
        await asyncio.sleep(0)
        answer.cancel()

    asyncio.run(run())
    wait_until(lambda: queue.load()["running"] == 0)
    steps = queue.seen.steps
    assert steps < 10
    time.sleep(0.1)
    assert queue.seen.steps == steps


def test_an_answer_that_takes_too_long_is_given_up(make_queue):
    queue = make_queue(Limits(answer_seconds=0.2), script="word " * 100, delay=0.05)

    async def run():
        await whole(await queue.submit(job()))

    with pytest.raises(Refusal) as refused:
        asyncio.run(run())
    assert (refused.value.status, refused.value.code) == (504, "timeout")
    wait_until(lambda: queue.load()["running"] == 0)


def test_closing_ends_running_and_waiting_answers(make_queue):
    queue = make_queue(script="word " * 100, delay=0.02)

    async def run():
        answers = [await queue.submit(job()) for _ in range(3)]
        ends = asyncio.gather(*map(whole, answers), return_exceptions=True)
        await asyncio.sleep(0.1)
        queue.close()
        with pytest.raises(Refusal, match="shutting down"):
            await queue.submit(job())
        return await asyncio.wait_for(ends, 5)

    ends = asyncio.run(run())
    assert [end.status for end in ends] == [503] * 3
    queue.close(wait=5)
    assert not queue._worker.is_alive()


def test_limits_on_prompt_and_answer(make_queue):
    queue = make_queue(Limits(prompt_tokens=12, max_tokens=3), script="word " * 100)

    async def run():
        with pytest.raises(Refusal, match=r"at most 12 fit \(the server's limit\)"):
            await queue.submit(job("word " * 100))
        return [piece async for piece in await queue.submit(job(max_tokens=10**9))]

    *_, last = asyncio.run(run())
    assert (last.tokens, last.finish) == (3, "length")


def test_a_refused_prompt_gives_its_place_back(make_queue):
    queue = make_queue(Limits(waiting=0), context=16)

    async def run():
        for _ in range(5):
            with pytest.raises(Refusal) as refused:
                await queue.submit(job("word " * 100))
            assert refused.value.code == "context_length_exceeded"
        return await whole(await queue.submit(job()))

    assert asyncio.run(run()) == "Paris."


def test_a_template_that_refuses_is_the_client_s_mistake(make_queue, tokenizer):
    queue = make_queue()
    picky = tokenizer.with_template("{{ raise_exception('turns must alternate') }}")
    queue._model._loaded = type(queue._model._loaded)(queue._model.config, queue._model.network, picky)

    async def run():
        await queue.submit(job())

    with pytest.raises(Refusal, match="turns must alternate") as refused:
        asyncio.run(run())
    assert refused.value.status == 400
