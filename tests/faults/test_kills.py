"""kill -9 at random moments: resumed each time, a run ends with the same bits as one that was never killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_three_kills_change_nothing():
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_resume.py"), "--kills", "3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert all(when in ended.stdout for when in ("starting, ", "training, ", "saving, "))
    assert "the same bits as never killed" in ended.stdout
