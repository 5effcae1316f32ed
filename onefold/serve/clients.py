"""Work for a client that may go away before it is done."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from onefold.serve.engine import Refusal

T = TypeVar("T")


async def unless_gone(work: Coroutine[Any, Any, T], request: Request) -> T:
    """The result of `work`, which is cancelled when the client goes away first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refusal(499, "the client went away")  # nobody reads it; 499 is nginx's number for this
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
