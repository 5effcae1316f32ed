"""How deep in a picture model a parameter lies: what learning rates that fall towards the input go by."""

import re
from collections.abc import Sequence

_BLOCK = re.compile(r"(?:encoder\.)?(?:stages\.(?P<stage>\d+)\.)?blocks\.(?P<block>\d+)\.")
_STAGE = re.compile(r"stages\.(?P<stage>\d+)\.")
_FIRST = re.compile(r"(?:encoder\.)?(?:embed|relative|stem)\.")


def depth_of(name: str, blocks: Sequence[int]) -> int:
    """0 for what meets the pixels, 1, 2, … for the blocks, one more for all behind them.

    `blocks`: how many each stage has. What stands between two stages belongs to the block that follows it.
    """
    if _FIRST.match(name):
        return 0
    if match := _BLOCK.match(name):
        return 1 + sum(blocks[: int(match["stage"] or 0)]) + int(match["block"])
    if match := _STAGE.match(name):
        return 1 + sum(blocks[: int(match["stage"])])
    return 1 + sum(blocks)
