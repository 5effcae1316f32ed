"""Synthetic pairs: sentences of a small English grammar, and what they are in a language that nobody speaks.

A stand-in for parallel text where none is at hand, made so that translating takes what it takes between real languages:
order (the verb comes last, adjectives follow their noun, prepositions become postpositions), agreement (nouns have one
of three genders that adjectives and articles follow; subject and object have endings), and names, which occur once and
are copied letter by letter. What a model learns here says nothing about real languages.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

SYNTHETIC = "synthetic"
PAIRS = 20_000


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "dog cat horse bird child woman man teacher friend king river forest garden house tower bridge door table boat "
    "stone tree apple book letter"
)
PLURALS = {"child": "children", "woman": "women", "man": "men"}
VERBS = _words(
    "see:sees:saw find:finds:found follow:follows:followed carry:carries:carried paint:paints:painted "
    "love:loves:loved hear:hears:heard build:builds:built forget:forgets:forgot sell:sells:sold"
)
ADJECTIVES = _words("small large old young red green quiet heavy broken empty")
PREPOSITIONS = _words("near behind under above without")
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
ENDINGS = ("o", "a", "u")  # of what agrees with a noun, by its gender


@dataclass(frozen=True)
class _Phrase:
    source: str
    target: str  # without the ending of its case
    plural: bool


def pairs(count: int = PAIRS, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(English, its translation), each a function of the seed and its place; sentences have 3 to about 30 words."""
    words = _lexicon()
    for place in range(count):
        yield _sentence(Random(f"{seed} {place}"), words)


def _lexicon() -> dict[str, str]:
    """English word → root."""
    random, taken, found = Random(0), set(), {}
    for word in (*NOUNS, *(verb.split(":")[0] for verb in VERBS), *ADJECTIVES, *PREPOSITIONS):
        while (root := _syllables(random, 2)) in taken:
            pass
        taken.add(root)
        found[word] = root
    return found


def _syllables(random: Random, count: int) -> str:
    return "".join(random.choice(CONSONANTS) + random.choice(VOWELS) for _ in range(count)) + random.choice(CONSONANTS)


def _sentence(random: Random, words: dict[str, str]) -> tuple[str, str]:
    source, target = _clause(random, words)
    if random.random() < 0.15:
        more, its = _clause(random, words)
        source, target = f"{source} and {more}", f"{target} eta {its}"
    return f"{source[0].upper()}{source[1:]}.", f"{target[0].upper()}{target[1:]}."


def _clause(random: Random, words: dict[str, str]) -> tuple[str, str]:
    """Subject, verb, object and places: the verb is last in the translation, and places stand before the object."""
    subject, object = _phrase(random, words, 0.25), _phrase(random, words, 0.15)
    base, third, past = random.choice(VERBS).split(":")
    happened = random.random() < 0.4
    verb = past if happened else base if subject.plural else third
    ending = ("ik" if subject.plural else "it") if happened else ("an" if subject.plural else "a")
    places = [_phrase(random, words, 0.1) for _ in range(random.choice((0, 0, 1, 1, 2)))]
    around = [random.choice(PREPOSITIONS) for _ in places]
    source = [subject.source, verb, object.source, *(f"{p} {place.source}" for p, place in zip(around, places))]
    said = [f"{place.target}i {words[p]}e" for p, place in reversed(list(zip(around, places)))]
    return " ".join(source), " ".join([subject.target, *said, f"{object.target}em", words[base] + ending])


def _phrase(random: Random, words: dict[str, str], named: float) -> _Phrase:
    """An article, up to two adjectives and a noun; or, with probability `named`, a name."""
    if random.random() < named:
        name = _syllables(random, random.choice((1, 2, 2, 3))).capitalize()
        return _Phrase(name, name, False)
    noun, plural = random.choice(NOUNS), random.random() < 0.35
    adjectives = random.sample(ADJECTIVES, random.choice((0, 0, 1, 1, 2)))
    definite = random.random() < 0.6
    gender = ENDINGS[NOUNS.index(noun) % 3]
    article = ("the" if definite else "some") if plural else "the" if definite else "a"
    if article == "a" and (adjectives or [noun])[0][0] in VOWELS:
        article = "an"
    shown = PLURALS.get(noun, noun + "s") if plural else noun
    told = [("l" if definite else "n") + gender] if definite or not plural else []
    told += [words[noun] + ("en" if plural else ""), *(words[each] + gender for each in adjectives)]
    return _Phrase(" ".join((article, *adjectives, shown)), " ".join(told), plural)
