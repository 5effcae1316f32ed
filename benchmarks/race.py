"""Contenders in turn, round after round, so that a noisy machine is noisy for all of them alike."""

import platform
import statistics
import sys
from collections.abc import Callable

import torch


def machine() -> str:
    versions = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    if "transformers" in sys.modules:
        versions.append(f"transformers {sys.modules['transformers'].__version__}")
    return f"{_cpu()}, {torch.get_num_threads()} threads; {', '.join(versions)}"


def race(contenders: dict[str, Callable[[], float]], rounds: int, baseline: str, unit: str = "ms") -> dict[str, float]:
    """Call each contender once a round for its seconds; print best, median and the ratio to `baseline` per round.

    Returns the median ratio baseline/contender: above 1, the contender is faster.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(run())
    ratios = {}
    print(f"{'':28}{'best':>10}{'median':>10}   {baseline} / it: median (min-max) of {rounds} rounds")
    for name, times in seconds.items():
        each = sorted(b / t for b, t in zip(seconds[baseline], times, strict=True))
        ratios[name] = statistics.median(each)
        best, median = min(times) * 1e3, statistics.median(times) * 1e3
        print(f"{name:28}{best:>8.1f} {unit}{median:>7.1f} {unit}  {ratios[name]:.2f} ({each[0]:.2f}-{each[-1]:.2f})")
    return ratios


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
