"""The house stands as drawn: imports point downward, and looking at the door does not wake the whole house."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_imports_point_downward():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("code", ["import onefold", "import onefold.cli.main", "import onefold.recipes"])
def test_importing_loads_nothing_heavy(code):
    assert not loaded_by(code) & {"torch", "pydantic", "numpy", "pyarrow", "transformers"}


@pytest.mark.parametrize(("before", "after"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_that_wait_give_way_unless_the_user_says_otherwise(before, after):
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | before
    code = [sys.executable, "-c", "import onefold, os; print(os.environ['GOMP_SPINCOUNT'])"]
    assert subprocess.check_output(code, env=environment, text=True).strip() == after


def test_help_says_what_each_verb_does():
    done = subprocess.run([sys.executable, "-m", "onefold", "--help"], capture_output=True, text=True, check=True)
    for verb in ("quickstart", "train", "show", "generate", "chat", "serve", "evaluate", "compare", "export", "check"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "gtp2"], "did you mean gpt2"),
        (["show", "gpt2", "model.blok.heads=3"], "did you mean block"),
        (["show", "gpt2", "model.depth=many"], "model.depth"),
        (["show", "missing.json"], "could not read missing.json"),
        (["show", "gpt2", "steps"], "name=value"),
        (["chat", "no/such/folder"], "no/such/folder"),
    ],
)
def test_a_mistake_is_a_line_or_two_without_traceback(arguments, message):
    done = subprocess.run([sys.executable, "-m", "onefold", *arguments], capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
