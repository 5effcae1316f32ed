"""Kill a training with SIGKILL at random moments, resume it each time, and compare with one that was never killed.

    python benchmarks/kill_resume.py --kills 20

A third of the kills falls into the start, a third between steps, a third into the writing of a checkpoint. At the end
the losses of every step, the weights and the optimizer's memory must be the same bits. Exits with 1 when they are not.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "omicron"]
CHILD = "import sys; from onefold.training.run import Run, train; train(Run.from_json(open(sys.argv[1]).read()))"


def settings(corpus: Path, out: Path, steps: int) -> dict:
    """A small run with everything that could forget something: Muon, dropout, evaluation, best and old checkpoints."""
    attention = {"kind": "attention", "heads": 4, "position": {"kind": "rotary"}}
    block = {"mixer": attention, "ffn": {"kind": "gated", "width": 96}, "dropout": 0.1}
    tokenizer = {"kind": "bpe", "vocab": 300}
    trainer = {"steps": steps, "batch": 16, "micro_batch": 8, "checkpoint_every": 3, "evaluate_every": 5, "history": 8}
    return {
        "data": {"kind": "text", "sources": [str(corpus)], "context": 64, "tokenizer": tokenizer},
        "model": {"kind": "decoder", "vocab": 320, "width": 48, "depth": 4, "context": 64, "block": block},
        "optimizer": {"kind": "muon", "lr": 0.01},
        "trainer": {**trainer, "device": "cpu"},
        "out": str(out),
    }


def start(run: dict) -> subprocess.Popen:
    config = Path(run["out"]).with_suffix(".json")
    config.write_text(json.dumps(run))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(config)], env=environment, stderr=subprocess.DEVNULL)


def finish(run: dict) -> float:
    """Run to the end; returns the seconds until its first step."""
    process, began, first = start(run), time.monotonic(), 0.0
    while process.poll() is None:
        if not first and records(Path(run["out"])):
            first = time.monotonic() - began
        time.sleep(0.01)
    if process.returncode:
        sys.exit(f"training ended with {process.returncode}")
    return first


def records(out: Path) -> list[dict]:
    found = []
    for line in (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut off
            break
    return found


def kill_once(run: dict, moment: random.Random, when: str, startup: float) -> str | None:
    """Start the run, kill it, and say where it was; None when it finished instead.

    when: "starting" (while it imports, prepares data or restores), "training" (some steps later) or "saving".
    """
    out, steps = Path(run["out"]), run["trainer"]["steps"]
    before = len(records(out))
    goal = before + moment.randint(1, max(1, (steps - before) // 6))
    process, kill_at = start(run), time.monotonic() + moment.uniform(0, startup)
    while process.poll() is None:
        writing, done = any((out / "checkpoints").glob(".*.writing-*")), len(records(out))
        if when == "starting":
            ready = time.monotonic() > kill_at
        else:
            ready = done >= goal and (writing or when == "training")
        if ready:
            time.sleep(moment.uniform(0, 0.05) if when == "training" else 0)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return f"{when}, after {done} of {steps} steps"
        time.sleep(0.0005)
    return None


def compare(one: Path, other: Path, steps: int) -> list[str]:
    """What differs between two finished runs."""
    problems = []
    timing = {"seconds", "tokens_per_second", "mfu", "waiting", "resumed"}
    logs = [[{k: v for k, v in r.items() if k not in timing} for r in records(out)] for out in (one, other)]
    if logs[0] != logs[1]:
        problems.append(f"logs differ ({len(logs[0])} and {len(logs[1])} records)")
    for file in ("model.safetensors", "state/optimizer.safetensors"):
        a, b = (out / "checkpoints" / str(steps) / file for out in (one, other))
        if a.read_bytes() != b.read_bytes():
            problems.append(f"{file} differs")
    kept = [sorted(f.name for f in (out / "checkpoints").iterdir()) for out in (one, other)]
    if kept[0] != kept[1]:
        problems.append(f"other checkpoints are kept: {kept}")
    return problems


def main(kills: int, seed: int, keep: str | None) -> list[str]:
    moment, steps = random.Random(seed), 40 + 10 * kills
    with nullcontext(keep) if keep else tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir(parents=True)
        for i in range(60):
            words = random.Random(i)
            text = " ".join(words.choice(WORDS) for _ in range(words.randint(20, 400)))
            (corpus / f"{i}.txt").write_text(text)
        whole, killed = (settings(corpus, Path(folder) / name, steps) for name in ("whole", "killed"))
        startup = finish(whole)
        for number in range(kills):
            when = ("starting", "training", "saving")[number % 3]
            killed_at = kill_once(killed, moment, when, startup)
            if killed_at is None:
                sys.exit(f"the run finished before kill {number + 1}: give it more steps")
            print(f"kill {number + 1}: {killed_at}", flush=True)
        finish(killed)
        problems = compare(Path(whole["out"]), Path(killed["out"]), steps)
    print("\n".join(problems) if problems else f"{kills} kills: the same bits as never killed")
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="a new folder to keep both runs in")
    given = parser.parse_args()
    sys.exit(1 if main(given.kills, given.seed, given.keep) else 0)
