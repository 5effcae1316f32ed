"""Contenders in turn, round after round, so that a noisy machine is noisy for all of them alike."""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def parser(doc: str | None, rounds: int, threads: int | None = None) -> argparse.ArgumentParser:
    """The options that races have in common; threads None: as many as torch takes by itself."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=threads or torch.get_num_threads())
    made.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use, too")
    return made


def begin(made: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for, `clock` as a function; torch is set accordingly, and the machine told."""
    options = made.parse_args()
    options.clock = CLOCKS[options.clock]
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(machine())
    return options


def machine() -> str:
    versions = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    peers = [name for name in ("transformers", "peft", "trl", "timm") if name in sys.modules]
    versions += [f"{name} {sys.modules[name].__version__}" for name in peers]
    return f"{_cpu()}, {torch.get_num_threads()} threads; {', '.join(versions)}"


def race(
    contenders: dict[str, Callable[[], float]], rounds: int, baseline: str, unit: str = "ms", digits: int = 1
) -> dict[str, float]:
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
        shown = f"{best:>8.{digits}f} {unit}{median:>7.{digits}f} {unit}"
        print(f"{name:28}{shown}  {ratios[name]:.2f} ({each[0]:.2f}-{each[-1]:.2f})")
    return ratios


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
