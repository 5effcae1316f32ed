"""From text to a policy, by the very commands of the guide."""

import json
import re
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from onefold.cli.main import app
from onefold.data.text.pairs.synthetic import ADJECTIVES, NOUNS

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
HEADING = "All the way, as Llama 2 went"
SHORT = {
    "llama2": ("trainer.steps=12", "trainer.evaluate_batches=1", "data.context=64", "trainer.schedule.warmup=0.5"),
    "reward": ("trainer.steps=4", "trainer.batch=8", "data.context=64"),
    "rlhf": ("trainer.steps=2", "data.prompts=4", "data.samples=8", "data.max_new_tokens=8", "data.context=64"),
}
LESS = {"data=notes/": ("model.width=32", "model.depth=1", "model.context=64", "data.tokenizer.vocab=400"), "chat": ()}
LESS["method=best_of"] = LESS["method=ppo"] = ("trainer.batch=4",)


def commands() -> list[list[str]]:
    """What stands in the guide under the heading."""
    section = re.search(rf"## {HEADING}\n.*?```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return [line.split()[1:] for line in section[1].splitlines()]


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def says(noun: str, random: Random) -> str:
    return f"the {random.choice(ADJECTIVES)} {noun} sees the {random.choice(NOUNS)}."


@pytest.mark.slow
def test_the_commands_of_the_guide_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = Random(0)
    Path("notes").mkdir()
    for n in range(20):
        Path(f"notes/{n}.txt").write_text(" ".join(says(random.choice(NOUNS), random) for _ in range(20)))
    asked = [{"prompt": noun, "risky": n % 2 == 0} for n, noun in enumerate(NOUNS)]
    write("prompts.jsonl", asked)
    write("dialogues.jsonl", [{"prompt": noun, "completion": says(noun, random)} for noun in NOUNS * 8])
    for name in ("helpful.jsonl", "safe.jsonl"):
        pairs = [(noun, says(noun, random)) for noun in NOUNS * 4]
        write(name, [{"prompt": n, "chosen": text, "rejected": text[: len(text) // 2]} for n, text in pairs])
    for command in commands():
        recipe = command[1]
        more = [*SHORT.get(recipe, ()), *(s for key, some in LESS.items() if key in command for s in some)]
        if command[0] == "train":
            called = CliRunner().invoke(app, [*command, *more, "trainer.device=cpu"])
        else:
            called = CliRunner().invoke(app, [*command, "max_new_tokens=4"], input="dog\n\n")
        assert called.exit_code == 0, (command, called.output, called.exception)
    log = [json.loads(line) for line in Path("runs/ppo/log.jsonl").read_text().splitlines()]
    assert {"reward", "kl", "penalty", "clipped"} <= log[-1].keys()
    config = json.loads(Path("runs/ppo/config.json").read_text())
    assert config["start"] == "runs/chosen"
    assert config["data"]["rewards"][0]["safety"]["model"] == "runs/safe"
