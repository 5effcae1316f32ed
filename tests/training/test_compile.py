"""trainer.compile, with a compiler and without one."""

import os
import subprocess
import sys

import pytest
import torch

from onefold.training.log import read_log
from onefold.training.run import train


def test_without_a_compiler_it_says_so_and_goes_on(make_run, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    result = train(make_run({"trainer.compile": True, "trainer.steps": 2}))
    told = capsys.readouterr().err
    assert "torch.compile does not work here (InvalidCxxCompiler: No working C++ compiler found)" in told
    monkeypatch.undo()
    eager = train(make_run({"trainer.steps": 2, "out": make_run().out / "eager"}))
    assert [r["loss"] for r in eager.log] == [r["loss"] for r in result.log]


@pytest.mark.slow
def test_a_machine_without_compiler_is_noticed(tmp_path):
    script = "import torch; from onefold.training.parallel import can_compile; print(can_compile(torch.device('cpu')))"
    environment = os.environ | {"CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200)
    assert ended.stdout.strip() == "False", ended.stderr[-2000:]
    assert "going on without it" in ended.stderr


@pytest.mark.slow
def test_compiled_is_eager(make_run):
    """In a process of its own: the compiler does not read functions whose shapes are checked, as tests have them."""
    plain = {"model.block.dropout": 0.0, "trainer.evaluate_every": 3, "trainer.steps": 6}
    runs = [make_run({**plain, "trainer.compile": c, "out": make_run().out / str(c)}) for c in (False, True)]
    script = (
        "import sys; from onefold.training.run import Run, train; train(Run.from_json(sys.argv[1])); "
        "from torch._dynamo.utils import counters; print(counters['stats']['unique_graphs'])"
    )
    logs, graphs = [], []
    for run in runs:
        ended = subprocess.run(
            [sys.executable, "-c", script, run.to_json()], capture_output=True, text=True, timeout=250
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        if "does not work here" in ended.stderr:
            pytest.skip("no compiler here")
        logs.append(read_log(run.out / "log.jsonl"))
        graphs.append(int(ended.stdout.split()[-1]))
    eager, compiled = ([r["loss"] for r in log] for log in logs)
    assert compiled == pytest.approx(eager, abs=1e-4)
    assert graphs[0] == 0 < graphs[1]
    assert logs[1][-1]["held_out"]["loss"] == pytest.approx(logs[0][-1]["held_out"]["loss"], abs=1e-4)
