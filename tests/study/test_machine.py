"""The facts of the machine that runs this test."""

import os
import platform

from onefold.study import machine


def test_facts_are_this_machines():
    facts = machine.facts("cpu")
    assert facts["python"] == platform.python_version()
    assert 1 <= facts["cores"] <= os.cpu_count()
    assert facts["device"] == "cpu"
    assert facts["torch"][0] == "2"
    assert None not in facts.values()


def test_peak_memory_grows_with_what_was_held():
    before = machine.peak_memory()
    held = bytearray(before + 50_000_000)
    held[::4096] = b"x" * len(held[::4096])
    assert machine.peak_memory() >= before + 40_000_000
