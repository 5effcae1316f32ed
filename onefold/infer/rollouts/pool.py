"""The best answers that were ever given to each prompt: what rejection sampling learns from."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor


class Pool:
    """For each prompt, by its row, its best answers (reward, ids), the best first. Of equals the older one stays."""

    def __init__(self):
        self._kept: dict[int, list[tuple[float, list[int]]]] = {}

    def add(self, row: int, reward: float, ids: Sequence[int], most: int) -> None:
        """An answer, of which it remembers `most` a prompt; the same answer again is none."""
        kept = self._kept.setdefault(row, [])
        if all(list(ids) != known for _, known in kept):
            kept.append((reward, list(ids)))
            kept.sort(key=lambda answer: -answer[0])
            del kept[most:]

    def best(self, row: int, count: int) -> list[tuple[float, list[int]]]:
        """So many of a prompt's answers; where it has fewer different ones, from the best again."""
        kept = self._kept[row]
        return [kept[n % len(kept)] for n in range(count)]

    def memory(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        flat = [(row, reward, ids) for row, kept in self._kept.items() for reward, ids in kept]
        return {
            "rows": torch.tensor([row for row, _, _ in flat]),
            "rewards": torch.tensor([reward for _, reward, _ in flat], dtype=torch.float64),
            "lengths": torch.tensor([len(ids) for _, _, ids in flat]),
            "ids": torch.tensor([token for _, _, ids in flat for token in ids]),
        }

    @classmethod
    def of(cls, memory: dict[str, Tensor]) -> Self:
        """As `memory` told; empty where nothing was."""
        pool = cls()
        if "ids" in memory:
            texts = memory["ids"].split(memory["lengths"].tolist())
            for row, reward, ids in zip(memory["rows"].tolist(), memory["rewards"].tolist(), texts):
                pool._kept.setdefault(row, []).append((reward, ids.tolist()))
        return pool
