"""A synthetic world of preferences: what people would say is known, so that what was learned can be measured.

A small model learns to write sentences of a made-up grammar about a noun. Its own answers are compared in pairs by a
known reward, and one is preferred with the probability σ(difference): Bradley and Terry's model holds exactly. So the
best that can be done at each distance from the model is known, too: π* ∝ π_ref · exp(reward / β).

Nothing here says anything about what people prefer.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import exp
from pathlib import Path
from random import Random

import numpy as np
import torch

from onefold.core.files import atomic_write
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.messages import chat_ids
from onefold.data.text.documents import TrainBPE
from onefold.data.text.pairs.synthetic import ADJECTIVES, NOUNS, PREPOSITIONS, VERBS
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model, load
from onefold.models.transformer import BlockConfig, DecoderConfig
from onefold.nn.attention import AttentionConfig
from onefold.nn.feedforward import GatedMLPConfig
from onefold.nn.position import RotaryConfig
from onefold.objectives.log_probs import answer_log_probs
from onefold.study.check import whole
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import Linear
from onefold.training.run import Run, train
from onefold.training.trainer import TrainerConfig

SEEDS = (0, 1, 2)
CONTEXT, VOCAB = 56, 400
WRITTEN = 3000  # sentences that the model learns to write
PAIRS = 640  # of its answers, which people compare
SAMPLES = 384  # by which a model is measured
SAMPLED = 4096  # from the model that all begin with, which tell what the best would be
LONGEST = 40  # tokens of an answer


def reward(text: str) -> float:
    """Known, and not what the model was trained for: people like adjectives, and dislike being told where."""
    adjectives, places = liked(text)
    return 0.8 * adjectives - 1.2 * places


def liked(text: str) -> tuple[int, int]:
    """How many adjectives a text has, and how many prepositions."""
    words = text.lower().replace(".", "").split()
    return sum(word in ADJECTIVES for word in words), sum(word in PREPOSITIONS for word in words)


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt, with what it read and wrote, and how likely that was to it."""

    prompt: str
    text: str
    read: list[int]
    wrote: list[int]

    @property
    def reward(self) -> float:
        return reward(self.text)


@dataclass(frozen=True)
class World:
    """A model that writes, and what people said of its answers. All of it lies in `folder`, made once."""

    seed: int
    folder: Path

    @cached_property
    def start(self) -> Path:
        """The run of the model that writes."""
        file, random = self.folder / "sentences.jsonl", Random(self.seed)
        if not file.is_file():
            rows = []
            for _ in range(WRITTEN):
                noun = random.choice(NOUNS)
                said = (("user", noun), ("assistant", _sentence(random, noun)))
                rows.append({"messages": [{"role": role, "content": text} for role, text in said]})
            _write(file, rows)
        block = BlockConfig(mixer=AttentionConfig(heads=2, position=RotaryConfig()), ffn=GatedMLPConfig(width=128))
        run = Run(
            data=ChatData(path=str(file), context=CONTEXT, tokenizer=TrainBPE(vocab=VOCAB)),
            model=DecoderConfig(vocab=VOCAB, width=64, depth=2, context=CONTEXT, block=block, init="fan_in"),
            optimizer=AdamWConfig(lr=5e-3),
            trainer=TrainerConfig(steps=300, batch=32, schedule=Linear(warmup=0.1), checkpoint_every=300),
            seed=self.seed,
            out=self.folder / "start",
        )
        return whole(train(run)).out

    @cached_property
    def reference(self) -> Model:
        return load(self.start)

    @cached_property
    def sampled(self) -> list[Answer]:
        return sample(self.reference, SAMPLED, self.seed)

    def tables(self) -> tuple[str, str]:
        """Pairs of the model's answers, and the same answers one by one, liked or not: two files."""
        files = self.folder / "pairs.jsonl", self.folder / "labels.jsonl"
        if not all(file.is_file() for file in files):
            random, pairs, labels = Random(self.seed), [], []
            first, second = (sample(self.reference, 2 * PAIRS, (2 + side) * 1000 + self.seed) for side in range(2))
            for one, other in zip(first, second):
                if one.text == other.text or not (one.text.strip() and other.text.strip()) or len(pairs) == PAIRS:
                    continue
                if random.random() > 1 / (1 + exp(other.reward - one.reward)):
                    one, other = other, one
                pairs.append({"prompt": one.prompt, "chosen": one.text, "rejected": other.text})
                for answer, liked in ((one, True), (other, False)):
                    labels.append({"prompt": answer.prompt, "completion": answer.text, "label": liked})
            for file, rows in zip(files, (pairs, labels)):
                _write(file, rows)
        pairs_file, labels_file = map(str, files)
        return pairs_file, labels_file

    def measure(self, model: Model) -> tuple[float, float]:
        """The mean reward of a model's answers, and KL(model ‖ reference) of an answer, in nats."""
        answers = self.answers(model)
        return float(np.mean([answer.reward for answer in answers])), self.distance(model, answers)

    def answers(self, model: Model) -> list[Answer]:
        """By which a model is measured."""
        return sample(model, SAMPLES, self.seed)

    def distance(self, model: Model, answers: Sequence[Answer]) -> float:
        """KL(model ‖ reference) of an answer, in nats, from the model's own answers."""
        return (log_probs(model, answers) - log_probs(self.reference, answers)).mean().item()

    def best(self, betas: Sequence[float]) -> list[tuple[float, float]]:
        """(reward, KL) of π* for each β, from answers of the reference, reweighted for each prompt by itself."""
        found = []
        for beta in betas:
            parts = []
            for noun in NOUNS:
                rewards = np.array([answer.reward for answer in self.sampled if answer.prompt == noun])
                weights = np.exp((rewards - rewards.max()) / beta)
                weights /= weights.sum()
                kl = (weights * np.log(np.maximum(weights * len(weights), 1e-300))).sum()
                parts.append((float(weights @ rewards), float(kl)))
            found.append(tuple(np.mean(parts, axis=0).tolist()))
        return found


@cache
def world(seed: int, folder: str = "runs/check/preferences") -> World:
    return World(seed, Path(folder) / str(seed))


def sample(model: Model, count: int, seed: int) -> list[Answer]:
    """Answers to all nouns in turn, drawn as the model would have them."""
    prompts = [NOUNS[i % len(NOUNS)] for i in range(count)]
    read = {noun: chat_ids([{"role": "user", "content": noun}], model.tokenizer) for noun in NOUNS}
    sampling = Sampling(temperature=1.0, max_new_tokens=LONGEST, seed=seed)
    rows = model.begin_all([read[prompt] for prompt in prompts], sampling)
    model.finish(rows, sampling)
    end = [model.tokenizer.special["<|end|>"]]
    return [
        Answer(prompt, row.text, read[prompt], row.ids + (end if row.finish == "stop" else []))
        for prompt, row in zip(prompts, rows)
    ]


@torch.no_grad()
def log_probs(model: Model, answers: Sequence[Answer]) -> torch.Tensor:
    """What a model gives to each answer: Float[N], in nats."""
    wide, most = (max(map(len, some)) for some in zip(*((a.read + a.wrote, a.wrote) for a in answers)))
    tokens, places, targets = (torch.zeros(len(answers), n, dtype=torch.long) for n in (wide, most, most))
    weights = torch.zeros(len(answers), most)
    for row, answer in enumerate(answers):
        both, n = answer.read + answer.wrote, len(answer.wrote)
        tokens[row, : len(both)] = torch.tensor(both)
        places[row, :n] = torch.arange(n) + len(answer.read) - 1
        targets[row, :n], weights[row, :n] = torch.tensor(answer.wrote), 1
    return answer_log_probs(model.network, tokens, places, targets, weights)


def _sentence(random: Random, noun: str) -> str:
    verb = random.choice(VERBS).split(":")[1]
    parts = [_phrase(random, noun), verb, _phrase(random, random.choice(NOUNS))]
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        parts += [random.choice(PREPOSITIONS), _phrase(random, random.choice(NOUNS))]
    return f"{' '.join(parts)}."


def _phrase(random: Random, noun: str) -> str:
    return " ".join(("the", *random.sample(ADJECTIVES, random.choice((0, 0, 1, 1, 2))), noun))


def _write(file: Path, rows: list[dict]) -> None:
    atomic_write(file, "".join(json.dumps(row) + "\n" for row in rows))
