import json

import pytest
from typer.testing import CliRunner

from onefold.cli.data import app
from onefold.core.errors import UserError
from tests.data.pictures.makers import class_folders


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_verbs_from_build_to_sample(tmp_path):
    class_folders(tmp_path / "a", each=10)
    store = tmp_path / "store"
    built = call("build", tmp_path / "a", store, "side=6", "held_out=0.2", "--workers", 2)
    assert built.exit_code == 0
    assert str(store) in built.output
    found = json.loads(call("info", store).stdout)
    assert found["facts"]["shape"] == [8, 6, 3]
    assert found["records"]["held_out"]["rows"] == 4
    assert set(json.loads(call("info", store, store / "train").stdout)) == {str(store), str(store / "train")}
    assert call("sample", store, tmp_path / "out", "-n", 3).exit_code == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert "is whole" in call("verify", store).stdout
    shard = store / "train" / "00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = call("verify", store)
    assert damaged.exit_code == 1
    assert "00000.arrow" in damaged.stdout


def test_a_store_is_added_to(tmp_path):
    store = tmp_path / "store"
    assert call("build", class_folders(tmp_path / "a", each=10), store).exit_code == 0
    more = class_folders(tmp_path / "b", ("ape",), each=5, size=(9, 7, 1))
    assert "--append" in str(call("build", more, store).exception)
    again = call("build", tmp_path / "a", store, "--append", "workers=2")
    assert (again.exit_code, again.stdout) == (0, "")  # it was left as it was
    assert "--new-classes" in str(call("build", more, store, "--append").exception)
    assert isinstance(call("build", more, tmp_path / "other", "--new-classes").exception, UserError)
    assert call("build", more, store, "held_out=0", "--append", "--new-classes").exit_code == 0
    facts = json.loads(call("info", store).stdout)["facts"]
    assert facts["classes"] == ["cat", "dog", "ape"]
    assert facts["sources"][-1] == {"path": str(more), "train": 5, "held_out": 0}
    assert "is whole" in call("verify", store).stdout


def test_mistakes_reach_the_command_line_as_user_errors(tmp_path):
    assert isinstance(call("build", "digits", tmp_path / "s", "sides=3").exception, UserError)
    assert isinstance(call("build", tmp_path / "nowhere", tmp_path / "s").exception, UserError)
    for setting in ("source=a", "out=b", "workers=two"):
        for way in ((), ("--append",)):
            assert isinstance(call("build", "digits", tmp_path / "s", setting, *way).exception, UserError)


@pytest.mark.parametrize("verb", ["build", "info", "verify", "sample"])
def test_every_verb_helps_with_an_example(verb):
    assert f"onefold data {verb}" in call(verb, "--help").output
