import gc
import threading
import time
import tracemalloc
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.ahead import AHEAD, NAME, Ahead, Slots


def threads():
    return [t for t in threading.enumerate() if t.name == NAME]


def ended(seconds=5.0):
    deadline = time.monotonic() + seconds
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not threads()


@pytest.mark.parametrize("count", [1, 3, 9])
def test_results_come_in_order_whichever_thread_is_first(count):
    def job(i):
        time.sleep(0.003 * (i % 3 == 0))
        return i

    with Ahead((partial(job, i) for i in range(40)), threads=count) as work:
        assert len(threads()) == count
        assert list(work) == list(range(40))
    assert not threads()


def test_threads_work_at_once_and_not_further_ahead_than_said():
    begun, both = [], threading.Barrier(2, timeout=5)

    def job(i):
        begun.append(i)
        if i < 2:
            both.wait()  # passes only if two threads are in here together
        return i

    with Ahead((partial(job, i) for i in range(1000)), threads=2) as work:
        assert [next(work) for _ in range(5)] == [0, 1, 2, 3, 4]
        time.sleep(0.1)
        assert sorted(begun) == list(range(5 + AHEAD))


def test_an_error_comes_in_its_place_and_ends_the_work():
    def job(i):
        if i == 2:
            raise OSError("disk gone")
        return i

    work = Ahead((partial(job, i) for i in range(9)), threads=3)
    assert [next(work), next(work)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(work)
    assert not threads()

    def jobs():
        yield lambda: 0
        raise ValueError("no plan")

    work = Ahead(jobs(), threads=2)
    assert next(work) == 0
    with pytest.raises(ValueError, match="no plan"):
        next(work)
    assert not threads()
    with pytest.raises(UserError, match="at least one thread"):
        Ahead(iter(()), threads=0)


def test_threads_end_with_whoever_held_the_work_even_in_a_cycle():
    class Holder:
        pass

    holder = Holder()
    holder.work, holder.me = Ahead((partial(int, i) for i in range(100)), threads=2), holder
    next(holder.work)
    assert len(threads()) == 2
    del holder
    gc.collect()
    assert ended()


def test_what_was_made_ahead_is_let_go():
    """After `close`, nothing of a result lives on in a thread, a queue or a frame."""
    alive = []

    class Result:
        pass

    def job():
        result = Result()
        alive.append(weakref.ref(result))
        return result

    work = Ahead(iter([job] * 20), threads=2)
    next(work)
    time.sleep(0.05)
    work.close()
    gc.collect()
    assert len(alive) > 1
    assert not [r for r in alive if r() is not None]


def test_a_slot_is_used_again_only_when_nobody_holds_what_lies_in_it():
    slots = Slots()
    first = slots.empty((4, 6), np.float32)
    place = first.ctypes.data
    part = torch.from_numpy(first[1:, ::2])[0]  # a view of a tensor of a view: all that is left of it
    del first
    other = slots.empty((4, 6), np.float32)
    assert other.ctypes.data != place
    del part
    again = slots.empty((24,), np.int32)  # as many bytes
    assert again.ctypes.data == place
    again[:] = 7
    assert (again == 7).all()
    assert other.shape == (4, 6)


def test_slots_do_not_outlive_their_holders():
    tracemalloc.start()  # numpy tells it of its arrays; what the process holds says less: freed memory may stay in it
    try:
        slots = Slots()
        held = [slots.empty((1 << 20,)) for _ in range(2)]
        assert tracemalloc.get_traced_memory()[0] > 2 << 20
        del held, slots
        assert tracemalloc.get_traced_memory()[0] < 1 << 18
    finally:
        tracemalloc.stop()
