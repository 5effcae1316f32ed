"""The inner loops of word vectors, compiled by numba. They hold no lock: threads update the same matrices at once.

A training step is one word, a microsecond's work, which no array library can batch without changing the method: the
next word's gradient needs this one's update. Updates of different threads to one row may get lost (Hogwild, Niu et al.
2011, arXiv 1106.5730); with one thread everything is exactly repeatable.

Random numbers are SplitMix64 (Steele et al. 2014): a counter and a mixing function, so that a seed is a position.
"""

import math

import numpy as np
from numba import njit

U = np.uint64  # numba makes a float of uint64 and int64, so everything that is mixed is unsigned
GOLD, MIX1, MIX2 = U(0x9E3779B97F4A7C15), U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)
S27, S30, S31, S32, LOW = U(27), U(30), U(31), U(32), U(0xFFFFFFFF)
FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums in any order, but NaN and infinity stay what they are
LOSS_EVERY = U(16)  # of how many pairs one tells its loss: logarithms cost more than the step


@njit(inline="always")
def mix(z):
    z = (z ^ (z >> S30)) * MIX1
    z = (z ^ (z >> S27)) * MIX2
    return z ^ (z >> S31)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def skipgram(stream, vectors, contexts, keep, share, other, window, negatives, rate, seed):
    """Skip-gram with negative sampling over a piece of the stream; → (loss, pairs that it was taken of).

    vectors, contexts: float32 [V, D], updated in place. keep: probability of each word to stay, of 2³². share, other:
    alias table of the negatives' distribution (share of 2³²). As in word2vec's tool a pair predicts the middle word
    from its neighbour; over a corpus that is the same set of pairs as the paper's.
    """
    size, width = U(vectors.shape[0]), vectors.shape[1]
    state = U(seed)
    text = np.empty(len(stream), np.int32)
    length = 0
    for word in stream:
        if word >= 0:
            state += GOLD
            if (mix(state) & LOW) >= keep[word]:
                continue
        text[length] = word
        length += 1
    change = np.empty(width, np.float32)
    loss, pairs, told = 0.0, U(0), 0
    for i in range(length):
        middle = text[i]
        if middle < 0:
            continue
        state += GOLD
        reach = 1 + int(((mix(state) & LOW) * U(window)) >> S32)
        for side in (-1, 1):
            for distance in range(1, reach + 1):
                j = i + side * distance
                if j < 0 or j >= length or text[j] < 0:
                    break
                v = vectors[text[j]]
                change[:] = 0
                pairs += U(1)
                tell = pairs % LOSS_EVERY == U(1)
                told += tell
                for k in range(negatives + 1):
                    target, label, sign = middle, np.float32(1), np.float32(1)
                    if k > 0:
                        state += GOLD
                        z = mix(state)
                        target = np.int32(((z >> S32) * size) >> S32)
                        if (z & LOW) >= share[target]:
                            target = other[target]
                        if target == middle:
                            continue
                        label, sign = np.float32(0), np.float32(-1)
                    u = contexts[target]
                    dot = np.float32(0)
                    for d in range(width):
                        dot += v[d] * u[d]
                    if tell:
                        loss += softplus(-sign * dot)
                    step = rate * (label - np.float32(1) / (np.float32(1) + math.exp(-dot)))
                    for d in range(width):
                        change[d] += step * u[d]
                        u[d] += step * v[d]
                for d in range(width):
                    v[d] += change[d]
    return loss, told


@njit(inline="always")
def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@njit(cache=True, error_model="numpy")
def count_pairs(stream, start, window, vocab, keys, counts, filled):
    """Add 1/distance for every pair of words at most `window` apart to a hash table; → (where it stopped, filled).

    keys: uint64 [2^n], 1 + smaller number · vocab + larger number, 0 where nothing is; counts: float64 of each. It
    stops at a word for whose pairs there may be no room. A word's pair with itself counts twice, once for each of its
    places, as the two orders of other pairs are two entries of the symmetric matrix.
    """
    mask = U(len(keys) - 1)
    room = len(keys) - len(keys) // 4 - window
    for i in range(start, len(stream)):
        if filled > room:
            return i, filled
        if stream[i] < 0:
            continue
        for distance in range(1, window + 1):
            j = i - distance
            if j < 0 or stream[j] < 0:
                break
            a, b = U(min(stream[i], stream[j])), U(max(stream[i], stream[j]))
            key = a * U(vocab) + b + U(1)
            place = mix(key) & mask
            while keys[place] != U(0) and keys[place] != key:
                place = (place + U(1)) & mask
            if keys[place] == U(0):
                keys[place] = key
                filled += 1
            counts[place] += (2.0 if a == b else 1.0) / distance
    return len(stream), filled


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def glove(first, second, counts, vectors, contexts, vectors_memory, contexts_memory, rate, ceiling, power):
    """AdaGrad on f(X)(w·c + b + b' − log X)²/2 for each pair in both orders; → (loss, how many).

    vectors, contexts: float32 [V, D + 1], biases last. memory: sums of (rate · gradient)², which begin at 1.
    """
    loss, seen = 0.0, 0
    for n in range(len(counts)):
        log = np.float32(math.log(counts[n]))
        weight = np.float32(min(1.0, (counts[n] / ceiling) ** power))
        for order in range(1 if first[n] == second[n] else 2):
            a, b = (first[n], second[n]) if order == 0 else (second[n], first[n])
            error = _glove_pair(
                vectors[a], contexts[b], vectors_memory[a], contexts_memory[b], log, weight, np.float32(rate)
            )
            loss += 0.5 * weight * error * error
            seen += 1
    return loss, seen


@njit(inline="always")
def _glove_pair(w, c, w_memory, c_memory, log, weight, rate):
    width = len(w) - 1
    error = w[width] + c[width] - log
    for d in range(width):
        error += w[d] * c[d]
    step = rate * weight * error
    for d in range(width):
        of_w, of_c = step * c[d], step * w[d]
        w[d] -= of_w / math.sqrt(w_memory[d])
        c[d] -= of_c / math.sqrt(c_memory[d])
        w_memory[d] += of_w * of_w
        c_memory[d] += of_c * of_c
    w[width] -= step / math.sqrt(w_memory[width])
    c[width] -= step / math.sqrt(c_memory[width])
    w_memory[width] += step * step
    c_memory[width] += step * step
    return error
