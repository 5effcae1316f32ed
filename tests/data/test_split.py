import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.data.split import choose, content_hash


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=60), st.floats(0.01, 0.5), st.integers(0, 9))
def test_every_character_is_on_one_side(texts, share, seed):
    keys = np.array([content_hash(t, seed) for t in texts], np.uint64)
    split = choose(keys, np.array([len(t) for t in texts]), share)
    sides = [split.divide(t, int(k)) for t, k in zip(texts, keys)]
    assert [a + b for a, b in sides] == texts
    assert not (split.tail and len(split.held_out))
    if not split.tail:
        held = {t for t, (_, b) in zip(texts, sides) if b}
        assert not held & {t for t, (a, _) in zip(texts, sides) if a}


def test_the_share_of_files_is_held_out_and_depends_on_the_seed_only():
    sizes = np.full(734, 1000)
    keys = [np.array([content_hash(f"file {i}", seed) for i in range(734)], np.uint64) for seed in (0, 1)]
    first, second = (choose(k, sizes, 0.05) for k in keys)
    assert len(first.held_out) == 37
    assert np.array_equal(choose(keys[0][::-1], sizes, 0.05).held_out, first.held_out)  # whatever the order
    chosen = [{i for i in range(734) if s.whole(int(k[i]))} for s, k in ((first, keys[0]), (second, keys[1]))]
    assert chosen[0] != chosen[1]


def test_copies_stay_together_whatever_their_white_space():
    assert content_hash("def f():\n    pass\n") == content_hash("def f():\r\n\tpass")
    assert content_hash("a b") != content_hash("ab")


def test_a_giant_is_never_held_out():
    keys = np.arange(100, dtype=np.uint64)  # the giant would be the first choice
    sizes = np.where(keys == 0, 10**6, 1000)
    assert not choose(keys, sizes, 0.05).whole(0)


def test_too_few_documents_lose_their_ends_instead():
    text = "".join(f"line {i}\n" for i in range(1000))
    split = choose(np.array([7], np.uint64), np.array([len(text)]), 0.05)
    train, held_out = split.divide(text, 7)
    assert train + held_out == text
    assert 0.04 < len(held_out) / len(text) <= 0.05
    assert train.endswith("\n")
    book_and_note = choose(np.array([1, 2], np.uint64), np.array([10**6, 2000]), 0.05)
    assert book_and_note.tail == 0.05


def test_nothing_is_held_out_when_nothing_should_be():
    split = choose(np.array([1, 2], np.uint64), np.array([5, 5]), 0)
    assert split.divide("text", 1) == ("text", "")
