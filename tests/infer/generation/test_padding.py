"""Rows of different lengths in one matrix."""

from onefold.infer.generation.padding import padded


def test_shorter_rows_are_filled_behind_or_before():
    rows = [[1, 2, 3], [], (4,)]
    assert padded(rows, 9).tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]]
    assert padded(rows, left=True).tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 4]]
    assert padded([]).shape == (0, 0)
    assert padded([[]]).shape == (1, 0)
