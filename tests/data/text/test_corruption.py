from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefold.core.errors import UserError
from onefold.data.draws import Draws
from onefold.data.text.corruption.infilling import Infilling, infill
from onefold.data.text.corruption.masking import Maskable, Masking, mask_tokens
from onefold.data.text.corruption.next_sentence import plan_pairs
from onefold.data.text.corruption.prefix import Prefix, split_prefix
from onefold.data.text.corruption.sentences import Sentences, permute_sentences
from onefold.data.text.corruption.sequences import Sequences, framed
from onefold.data.text.corruption.spans import Spans, corrupt_spans, divided

SENTINELS, PAD, MASK = np.arange(999, 899, -1), 0, 2
LENGTHS = st.lists(st.integers(0, 90), min_size=1, max_size=6)


def texts(lengths, low=10, high=800) -> Sequences:
    lengths = np.array(lengths)
    tokens = np.random.default_rng(0).integers(low, high, (len(lengths), max(lengths.max(), 1)))
    return Sequences(np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, PAD), lengths)


def rows(sequences: Sequences) -> list[list[int]]:
    """The rows, after a look at their padding."""
    assert (sequences.tokens[~sequences.real] == PAD).all()
    return [row[:n].tolist() for row, n in zip(sequences.tokens, sequences.lengths)]


def chi_square(counts, probabilities) -> float:
    """Distance of counts from what is expected, in standard deviations of the statistic."""
    expected = sum(counts) * np.array(probabilities)
    degrees = len(expected) - 1
    return float((((np.array(counts) - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5)


# Masking


@pytest.fixture
def maskable():
    ordinary = np.arange(1000) >= 10
    return Maskable(MASK, ordinary, np.arange(1000) % 3 > 0)


def test_masks_have_the_published_rates_and_leave_special_tokens_alone(maskable):
    tokens = np.random.default_rng(0).integers(0, 1000, 400_000)
    draws = Draws(0, 0, np.arange(2))
    seen, asked = mask_tokens(tokens, *draws.uniform(len(tokens)), Masking(), maskable)
    assert not asked[tokens < 10].any()
    assert (seen[~asked] == tokens[~asked]).all()
    ordinary = asked[tokens >= 10]
    assert ordinary.mean() == pytest.approx(0.15, abs=0.002)
    kinds = [seen[asked] == MASK, seen[asked] == tokens[asked]]
    assert [k.mean() for k in kinds] == pytest.approx([0.8, 0.1], abs=0.006)
    others = seen[asked & (seen != MASK) & (seen != tokens)]
    assert others.min() == 10
    assert others.max() == 999
    assert abs(chi_square(np.bincount(others - 10, minlength=990), np.full(990, 1 / 990))) < 4


@pytest.mark.parametrize(("masked", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_masks_of_one_kind(maskable, masked, random):
    tokens = np.arange(10, 1000)
    seen, asked = mask_tokens(
        tokens, *Draws(3, 0, np.arange(2)).uniform(990), Masking(masked=masked, random=random), maskable
    )
    assert ((seen[asked] == MASK) == bool(masked)).all()
    assert (seen[asked] >= 10).all() or masked
    if not masked and not random:
        assert (seen == tokens).all()


def test_whole_words_are_masked_or_not(maskable):
    tokens = np.random.default_rng(0).integers(10, 1000, 30_000)
    first = np.arange(30_000) % 100 == 0
    words = maskable.words(tokens, first)
    assert ((tokens % 3 == 0) | first)[words].all()  # where a word begins
    choice, fate = Draws(0, 0, np.arange(2)).uniform(30_000)
    _, asked = mask_tokens(tokens, choice[words], fate, Masking(), maskable)
    assert (asked == asked[words]).all()
    assert asked.mean() == pytest.approx(0.15, abs=0.01)


def test_words_of_a_vocabulary(tokenizer):
    marked = tokenizer.add_special(["<mask>"])
    known = Maskable.of(marked)
    ids = np.array(marked.encode("the model reads, 東京 writes"))
    words = known.words(ids, np.arange(len(ids)) == 0)
    spelled = [marked.decode(ids[words == begin]) for begin in np.unique(words)]
    assert "".join(spelled) == "the model reads, 東京 writes"
    assert spelled[1:3] == [" model", " reads,"]
    assert not known.ordinary[marked.mask]
    with pytest.raises(UserError, match="has no mask token"):
        Maskable.of(tokenizer)


# T5's spans


def test_lengths_are_those_of_the_paper():
    assert Spans().room(511) == 568  # and the token that ends a text
    assert Spans().widths(568) == (511, 113)


@given(LENGTHS, st.sampled_from([Spans(), Spans(rate=0.5, mean=1), Spans(rate=0.9, mean=10)]), st.integers(0, 99))
def test_spans_have_the_lengths_that_were_said_and_hold_the_text_together(lengths, spans, seed):
    given = texts(lengths)
    read, said = corrupt_spans(given, Draws(seed, 0, np.arange(len(given))), spans, SENTINELS, PAD)
    assert [read.lengths.tolist(), said.lengths.tolist()] == [n.tolist() for n in spans.lengths(given.lengths)]
    for text, short, gaps in zip(rows(given), rows(read), rows(said)):
        names = [t for t in gaps if t >= 900]
        assert names == SENTINELS[: len(names)].tolist() == [t for t in short if t >= 900]
        borders = [i for i, t in enumerate(gaps) if t >= 900] + [len(gaps)]
        pieces = {gaps[a]: gaps[a + 1 : b] for a, b in pairwise(borders)}
        assert all(pieces.values())
        assert [t for token in short for t in pieces.get(token, [token])] == text


def test_every_division_is_equally_likely():
    parts = divided(np.full(30_000, 6), np.full(30_000, 3), Draws(0, 0, np.arange(30_000)))
    counts = Counter(map(tuple, parts.tolist()))
    assert len(counts) == comb(5, 2)
    assert all(sum(division) == 6 and min(division) > 0 for division in counts)
    assert abs(chi_square(list(counts.values()), [1 / 10] * 10)) < 3


def test_span_lengths_are_those_of_a_random_division():
    given = texts(np.full(4000, 100))
    spans = Spans()
    taken, count = (int(n[0]) for n in spans.counts(given.lengths))
    _, said = corrupt_spans(given, Draws(0, 0, np.arange(4000)), spans, SENTINELS, PAD)
    first = np.argmax(said.tokens == SENTINELS[1], axis=1) - 1  # length of the first span
    ways = [comb(taken - n - 1, count - 2) / comb(taken - 1, count - 1) for n in range(1, taken - count + 2)]
    few = 6
    counts = [int((first == n).sum()) for n in range(1, few)] + [int((first >= few).sum())]
    assert abs(chi_square(counts, [*ways[: few - 1], sum(ways[few - 1 :])])) < 3


@pytest.mark.parametrize("noise", [Spans(), Spans(rate=0.5, mean=2), Infilling(), Infilling(mean=0.5), Prefix()])
@pytest.mark.parametrize("length", [2, 5, 30, 127])
def test_no_row_is_longer_than_was_said(noise, length, marked):
    room = noise.room(length)
    given = texts([room, *range(min(room, 40))], high=300)
    most = noise.widths(room)
    assert most[0] <= length
    for seed in range(20):
        sides = noise.build(marked, room, PAD)(given, np.zeros_like(given.real), Draws(seed, 0, np.arange(len(given))))
        assert all((side.lengths <= width).all() for side, width in zip(sides, most))


@pytest.fixture(scope="module")
def marked(tokenizer):
    return tokenizer.add_special(["<mask>", *(f"<extra_id_{i}>" for i in reversed(range(100)))])


def test_sentinels_are_found_by_their_names(marked):
    size = marked.size
    assert marked.sentinels == list(range(size - 1, size - 101, -1))
    noise, given = Spans().build(marked, 60, PAD), texts([60], high=300)
    read, said = noise(given, given.real, Draws(0, 0, np.arange(1)))
    for tokens in (read.tokens, said.tokens):
        assert [t for t in tokens[0] if t in marked.sentinels] == [size - 1, size - 2, size - 3]


def test_noise_that_a_tokenizer_has_no_tokens_for(tokenizer, marked):
    with pytest.raises(UserError, match="has 100 sentinels: train one with"):
        Spans().build(marked, 3000, PAD)
    with pytest.raises(UserError, match="has no sentinels"):
        Spans().build(tokenizer, 60, PAD)
    with pytest.raises(UserError, match="has no mask token"):
        Infilling().build(tokenizer, 60, PAD)


# BART


@given(LENGTHS, st.sampled_from([Infilling(), Infilling(rate=0.9, mean=1), Infilling(rate=0)]), st.integers(0, 99))
def test_what_infilling_keeps_stands_in_order(lengths, infilling, seed):
    given = texts(lengths)
    found = infill(given, Draws(seed, 0, np.arange(len(given))), infilling, MASK, PAD)
    for text, short in zip(rows(given), rows(found)):
        kept = [t for t in short if t != MASK]
        assert len(kept) == len(text) - round(infilling.rate * len(text))
        left = iter(text)
        assert all(t in left for t in kept)  # a subsequence
        assert all(MASK not in pair or pair[0] != pair[1] for pair in pairwise(short))


def test_span_lengths_are_poisson():
    """By the text that is missing at each mask: tokens are their own places."""
    given = Sequences(np.tile(np.arange(10, 510), (300, 1)), np.full(300, 500))
    lengths = []
    for row in rows(infill(given, Draws(0, 0, np.arange(300)), Infilling(), MASK, PAD)):
        edges = [9, *row, 510]
        found = [edges[i + 1] - edges[i - 1] - 1 for i, t in enumerate(edges) if t == MASK]
        assert sum(found) == 150
        lengths += found
    terms = [3**k / np.prod(range(1, k + 1)) * np.exp(-3) for k in range(9)]
    counts = [lengths.count(k) for k in range(9)] + [sum(n > 8 for n in lengths)]
    # One of some fifty spans is cut, so the fit is not perfect.
    assert np.array(counts) / len(lengths) == pytest.approx([*terms, 1 - sum(terms)], abs=0.01)


def test_sentences_are_permuted_whole_and_every_order_is_equally_likely():
    given = texts(np.full(12_000, 9))
    given = Sequences(np.tile(np.arange(10, 19), (12_000, 1)), given.lengths)
    ends = np.isin(given.tokens, [11, 15])  # sentences of 2, 4 and 3 tokens, the last without an end
    sentences = ([10, 11], [12, 13, 14, 15], [16, 17, 18])
    found = Counter(map(tuple, permute_sentences(given, ends, Draws(0, 0, np.arange(12_000))).tokens.tolist()))
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    assert set(found) == {tuple(t for i in order for t in sentences[i]) for order in orders}
    assert abs(chi_square(list(found.values()), [1 / 6] * 6)) < 3


@pytest.mark.parametrize(
    "text",
    [
        'the model reads.| It writes "a token."| page 3.5 of a.b runs!| then...| and',
        "a title\n\n|the page\nruns on.|    x+=1\n\n\n|héllo",
        "東京。|東京 a。|b",
    ],
)
def test_sentences_end_at_full_stops_before_blanks_and_where_paragraphs_do(text, tokenizer):
    tokenizer = tokenizer.add_special(["。"])  # else it would be three bytes
    parts = text.split("|")
    ids = tokenizer.encode("".join(parts), special=True)
    row = np.array([ids])
    ends = np.flatnonzero(Sentences.of(tokenizer).ends(row, np.zeros(row.shape, bool))[0])
    found = [tokenizer.decode(ids[a + 1 : b + 1], special=True) for a, b in pairwise([-1, *ends, len(ids) - 1])]
    assert found == parts


def test_where_a_text_ends_a_sentence_does(tokenizer):
    row = np.array([tokenizer.encode("the model")])
    borders = np.arange(row.shape[1])[None] == 1
    assert (Sentences.of(tokenizer).ends(row, borders) == borders).all()


def test_padding_stays_where_it_is():
    given = texts([7, 3, 0])
    found = permute_sentences(given, given.tokens % 2 == 0, Draws(0, 0, np.arange(3)))
    assert [sorted(a) for a in rows(found)] == [sorted(a) for a in rows(given)]


# Prefix, next sentence


@given(LENGTHS, st.integers(0, 99))
def test_a_prefix_and_the_rest_are_the_text(lengths, seed):
    given = texts(lengths)
    read, said = split_prefix(given, Draws(seed, 0, np.arange(len(given))), PAD)
    for text, a, b in zip(rows(given), rows(read), rows(said)):
        assert a + b == text
        assert len(text) < 2 or (a and b)


@given(LENGTHS, st.lists(st.integers(10, 20), max_size=3), st.lists(st.integers(10, 20), max_size=3))
def test_frames(lengths, before, after):
    given = texts(lengths)
    assert rows(framed(given, before, after, PAD)) == [[*before, *text, *after] for text in rows(given)]


def test_every_prefix_is_equally_likely():
    read, _ = split_prefix(texts(np.full(20_000, 11)), Draws(0, 0, np.arange(20_000)), PAD)
    assert abs(chi_square(np.bincount(read.lengths, minlength=11)[1:], [0.1] * 10)) < 3


def test_half_of_the_pairs_follow():
    lengths = np.random.default_rng(0).integers(0, 900, 200)
    plan = plan_pairs(lengths, 125, 0, 3)
    assert abs(int(plan.follows.sum()) * 2 - len(plan)) <= 1
    assert ((plan.first == plan.second) == plan.follows).all()
    assert (plan.second_offset == plan.first_offset + plan.first_length)[plan.follows].all()
    assert (plan.first_length + plan.second_length).max() == 125
    assert min(plan.first_length.min(), plan.second_length.min()) == 1
    for document, offset, length in (
        (plan.first, plan.first_offset, plan.first_length),
        (plan.second, plan.second_offset, plan.second_length),
    ):
        assert (offset + length <= lengths[document]).all()
    read = (plan.first_length + plan.second_length).sum()
    assert 0.9 * lengths.sum() < read <= lengths.sum()
    other = plan_pairs(lengths, 125, 0, 4)
    assert not np.array_equal(plan.first, other.first)


@pytest.mark.parametrize(("lengths", "strange"), [([5000, 60, 60], None), ([5000], 0), ([], 0), ([1, 1], 0)])
def test_pairs_of_few_documents_are_told_apart_all_the_same(lengths, strange):
    plan = plan_pairs(np.array(lengths, np.int64), 50, 0, 0)
    assert ((plan.first == plan.second) == plan.follows).all()
    if strange is not None:
        assert (~plan.follows).sum() == strange


# All of them


def corrupted(which: np.ndarray) -> list[list[list[int]]]:
    """Each kind of corruption of some rows of one batch, without padding."""
    lengths = np.array([40, 17, 60, 3, 25, 33])
    every = texts(lengths)
    given = Sequences(every.tokens[which, : lengths[which].max()], lengths[which])
    draws = Draws(5, 6, which)
    kinds = [
        *corrupt_spans(given, draws, Spans(), SENTINELS, PAD),
        infill(given, draws, Infilling(), MASK, PAD),
        permute_sentences(given, given.tokens % 5 == 0, draws.stream(3)),
        *split_prefix(given, draws, PAD),
    ]
    return [rows(kind) for kind in kinds]


def test_a_row_is_corrupted_the_same_in_any_company_and_any_process():
    expected = corrupted(np.arange(6))
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(corrupted, [np.array([0, 3]), np.array([1, 5, 4]), np.array([2])]))
    for kind, wanted in enumerate(expected):
        found = {0: 0, 3: 1}, {1: 0, 5: 1, 4: 2}, {2: 0}
        for part, places in zip(parts, found):
            for row, place in places.items():
                assert part[kind][place] == wanted[row]


def test_another_epoch_is_another_corruption():
    given = texts([200, 300])
    read = partial(infill, given, infilling=Infilling(), mask=MASK, pad=PAD)
    a, b, again = (rows(read(Draws(0, epoch, np.arange(2)))) for epoch in (0, 1, 0))
    assert a == again != b
