"""Numbers as people read them."""

import pytest

from onefold.study.pages import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.5234, "1.52"),
        (0.0005, "0.0005"),
        (0.005, "0.005"),
        (2e-05, "2e-5"),
        (480, "480"),
        (9500, "9,500"),
        (49000, "49k"),
        (2134272, "2.13M"),
        (7240000000.0, "7.24B"),
        (-3.5, "-3.5"),
        (1, "1"),
        (12.0, "12"),
        (100, "100"),
    ],
)
def test_short(value, text):
    assert words.short(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(5, "5 bytes"), (452_764, "453 kB"), (999_600, "1 MB"), (11_665_877, "11.7 MB"), (3e12, "3 TB")]
)
def test_size(value, text):
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.23, "1.2 seconds"), (42, "42 seconds"), (300, "5.0 minutes"), (9000, "2.5 hours")]
)
def test_duration(value, text):
    assert words.duration(value) == text


def test_large():
    assert [words.large(v) for v in (123_456, 2_134_272, 7.24e9)] == ["123,456", "2.13 million", "7.24 billion"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("bytes", 453000, "453 kB"),
        ("seconds", 300, "5.0 minutes"),
        ("mfu", 0.41, "41%"),
        ("tokens", 139000, "139,000"),
        ("x", None, "none"),
        ("x", True, "yes"),
        ("x", [0.9, 0.95], "0.9, 0.95"),
        ("lr", 0.00125, "0.00125"),
        ("s", 4096, "4096"),
    ],
)
def test_a_key_says_how_its_value_reads(name, value, text):
    assert words.show(name, value) == text
