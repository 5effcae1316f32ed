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
    found = "from onefold.training.processes.parallel import can_compile"
    script = f"import torch; {found}; print(can_compile(torch.device('cpu')))"
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


ADAPTED = """
import torch
from torch._dynamo.utils import counters
from onefold.adapt.every import adapt, read_steps
from onefold.core.batch import TokenBatch
from onefold.models.families import llama2
from onefold.objectives.language import NextToken

sizes = {"vocab": 40, "width": 16, "depth": 2, "context": 32, "block.mixer.heads": 4, "block.ffn.width": 24}
ids = torch.randint(0, 40, (4, 17))
batch = TokenBatch(tokens=ids[:, :-1], targets=ids[:, 1:], weights=torch.ones(4, 16))
for steps in (["lora"], [{"kind": "lora", "dora": True}], ["prompt"], ["prefix"], ["quantize", "lora"]):
    torch._dynamo.reset()
    model, objective = adapt(llama2("7b").but(sizes).build(), read_steps(steps, "here")), NextToken().build()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.1)

    def slopes():
        return torch.autograd.grad(objective(model, batch, 0).terms["ce"].sum, trained)

    wanted = slopes()
    counters.clear()
    for name in model.entry_points:
        setattr(model, name, torch.compile(getattr(model, name), backend="eager"))
    for found, slope in zip(slopes(), wanted, strict=True):
        torch.testing.assert_close(found, slope, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1, (steps, dict(counters["graph_break"]))
"""


@pytest.mark.slow
def test_what_is_adapted_is_one_graph():
    """As plain models are, of which a compiler makes the most."""
    ended = subprocess.run([sys.executable, "-c", ADAPTED], capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr[-3000:]
