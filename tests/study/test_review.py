"""What a training's review says."""

from onefold.study.review import of_experts


def test_experts_that_read_nothing_are_named_by_layer():
    first = {"step": 1, "held_out": {"loss": 3.0, "load/blocks.0.ffn": [0.0, 0.0, 1.0]}}
    last = {"step": 2, "held_out": {"loss": 2.0, "load/blocks.0.ffn": [0.4, 0.0, 0.6], "load/blocks.2.ffn": [0.5, 0.5]}}
    (line,) = of_experts([first, last, {"step": 3, "loss": 1.0}])
    assert line.startswith("blocks.0.ffn: 1 of 3 experts read nothing that was held out (1)")
    assert of_experts([{"step": 1, "loss": 1.0}]) == []
