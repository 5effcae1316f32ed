"""Configs refuse typos, merge overrides into the variant that is there, and never run code from a file."""

import json
from typing import Annotated, Literal

import pytest

from onefold.core.config import Config, Slot, differences, parse_override
from onefold.core.errors import UserError


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Config):
    kind: Literal["square"] = "square"
    side: float = 2.0
    turned: bool = False


class Mine(Config):
    """A researcher's own arm, unknown to the slot."""

    points: int = 5

    def build(self):
        return self.points


class Drawing(Config):
    shape: Annotated[Circle | Square, Slot()] = Circle()
    frame: Annotated[Circle | Square, Slot()] | None = None
    sizes: tuple[int, ...] = (1, 2)


class Ring(Config):
    kind: Literal["ring"] = "ring"
    ring: float = 1.0  # called like its kind
    width: float = 0.1


class Jewel(Config):
    shape: Annotated[Circle | Ring, Slot()]


@pytest.mark.parametrize("name", ["ring", "width"])
def test_a_mistake_is_placed_where_the_user_wrote_it(name):
    with pytest.raises(UserError, match=rf"^shape\.{name}: "):
        Jewel.from_dict({"shape": {"kind": "ring", "ring": 2, name: "wide"}})


def test_json_round_trip_keeps_the_variant():
    drawing = Drawing(shape=Square(side=3), frame=Circle(radius=2))
    assert Drawing.from_json(drawing.to_json()) == drawing


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"shape.radius": 4}, Circle(radius=4)),
        ({"shape": {"radius": 4}}, Circle(radius=4)),
        ({"shape": {"kind": "square", "side": 5}}, Square(side=5)),
        ({"shape.side": 7, "shape.kind": "square"}, Square(side=7)),
        ({"shape": "square"}, Square()),
        ({"shape.side": 6, "shape": "square"}, Square(side=6)),
        ({"shape": Square(side=9)}, Square(side=9)),
    ],
)
def test_overrides_merge_or_pick_another_kind(changes, shape):
    assert Drawing().but(changes).shape == shape


def test_merging_keeps_what_was_not_named():
    square = Drawing(shape=Square(side=3, turned=True))
    assert square.but({"shape": {"side": 4}}).shape == Square(side=4, turned=True)


@pytest.mark.parametrize(
    "picked", [{"optimizer": "muon"}, {"optimizer.kind": "muon"}, {"optimizer": {"kind": "muon", "eps": 1e-9}}]
)
def test_a_variant_just_picked_takes_all_of_its_own_settings(picked):
    from onefold.training.optimizers.optim import MuonConfig
    from onefold.training.run import Run

    run = Run(data={"kind": "text"}).but({**picked, "optimizer.lr": 0.01, "optimizer.adamw_lr": 0.003})
    assert isinstance(run.optimizer, MuonConfig)
    assert (run.optimizer.lr, run.optimizer.adamw_lr) == (0.01, 0.003)


def test_names_of_ones_own_are_set_one_by_one():
    class Named(Config):
        models: dict[str, str] = {}
        inner: Circle = Circle()

    assert Named().but({"models.teacher": "runs/a"}).models == {"teacher": "runs/a"}
    with pytest.raises(UserError, match=r"inner\.side"):
        Named().but({"inner.side": 1})


def test_lists_are_edited_by_index():
    assert Drawing().but({"sizes.1": 7}).sizes == (1, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shap.radius": 1}, "did you mean shape"),
        ({"shape.radios": 1}, "did you mean radius"),
        ({"shape.radius": "wide"}, "shape.radius: "),
        ({"shape": "triangle"}, "one of circle, square"),
        ({"frame.radius": 3}, "frame: kind must be one of"),
        ({"sizes.9": 3}, "index from 0 to 1"),
        ({"shape.radius.x": 3}, "no settings of its own"),
    ],
)
def test_mistakes_name_the_place_and_the_nearest_name(changes, message):
    with pytest.raises(UserError, match=message):
        Drawing().but(changes)


def test_unknown_key_in_a_file_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"shape: no setting named radus; did you mean radius"):
        Drawing.from_dict({"shape": {"kind": "circle", "radus": 1}})


def test_own_class_enters_from_python_but_never_from_a_file():
    path = f"{Mine.__module__}:Mine"
    mine = Drawing().but({"shape": {"kind": path, "points": 7}})
    assert mine.shape == Mine(points=7)
    assert Drawing(shape=Mine()).to_dict()["shape"]["kind"] == path
    assert mine.but({"sizes": [3]}).shape == Mine(points=7)
    with pytest.raises(UserError, match="is code"):
        Drawing.from_json(mine.to_json())


def test_digest_ignores_excluded_paths_only():
    a, b = Drawing(), Drawing().but({"shape.radius": 2})
    assert a.digest() != b.digest()
    assert a.digest(exclude=("shape.radius",)) == b.digest(exclude=("shape.radius",))


def test_parse_override_reads_json_or_text():
    assert parse_override("a.b=3e-4") == ("a.b", 3e-4)
    assert parse_override("data=notes/") == ("data", "notes/")
    with pytest.raises(UserError):
        parse_override("steps")


def test_differences_are_dotted():
    a, b = Drawing(), Drawing().but({"shape.radius": 2})
    assert differences(a.to_dict(), b.to_dict()) == {"shape.radius": (1.0, 2.0)}
    assert json.loads(a.to_json()) == a.to_dict()


def test_rows_of_a_table_differ_only_where_they_say_something_else():
    old, new = {"rows": [{"a": 1}, {"a": 2}]}, {"rows": [{"a": 1, "since": None}, {"a": 3, "since": None}]}
    assert differences(old, new) == {"rows.1.a": (2, 3)}
    assert differences({"rows": [{"a": 1}]}, old) == {"rows": ([{"a": 1}], old["rows"])}


def test_a_pattern_in_a_file_brings_no_code(tmp_path, monkeypatch):
    """Layers that differ are configs like any other: a file may not name a class of its own in them."""
    from onefold.models import families
    from onefold.models.transformer import DecoderConfig

    (tmp_path / "sly_layers.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    shape = {"vocab": 50, "width": 16, "depth": 2, "block.mixer.heads": 2, "block.ffn.width": 24}
    content = families.llama2().but(shape).to_dict() | {"pattern": [{"ffn": {"kind": "sly_layers:X"}}]}
    with pytest.raises(UserError):
        DecoderConfig.from_dict(content)
    with pytest.raises(SystemExit):  # from the command line it is what was asked for
        DecoderConfig.from_dict(content, trusted=True)
