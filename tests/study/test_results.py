"""results.json: written in parts, read whole, plain JSON whatever goes in."""

import json

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.study.baselines import Baseline
from onefold.study.results import read_results, write_results


def test_sections_add_up_and_are_replaced_one_by_one(tmp_path):
    write_results(tmp_path, title="first", final={"loss": 2.0})
    write_results(tmp_path, title="second", baselines=[Baseline("xz", 1.67, 0.2, "alone")])
    assert read_results(tmp_path) == {
        "title": "second",
        "final": {"loss": 2.0},
        "baselines": [{"name": "xz", "bits_per_byte": 1.67, "seconds": 0.2, "note": "alone"}],
    }


def test_arrays_paths_and_broken_numbers_become_json(tmp_path):
    final = {"a": np.float32(0.5), "b": np.arange(3), "c": float("nan"), "d": tmp_path, "e": (1, {"x": np.int64(2)})}
    path = write_results(tmp_path, final=final, notes=["half a character: \ud800"])
    found = json.loads(path.read_text("utf-8"))["final"]
    assert found == {"a": 0.5, "b": [0, 1, 2], "c": None, "d": str(tmp_path), "e": [1, {"x": 2}]}


def test_an_unknown_section_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no section finale"):
        write_results(tmp_path, finale={})


def test_nothing_written_is_nothing_read(tmp_path):
    assert read_results(tmp_path) == {}


@pytest.mark.parametrize("content", ['{"title": ', '{"version": 99}', "[]"])
def test_a_damaged_or_foreign_file_is_named(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json"):
        read_results(tmp_path)
