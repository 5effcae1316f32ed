"""Named templates against what their makers publish, character by character."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from onefold.core.errors import UserError
from onefold.data.text.chat.messages import encode, render, scripts, with_chat
from onefold.data.text.chat.sandbox import render_template
from onefold.data.text.chat.templates import TEMPLATES
from onefold.data.text.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "The river?"},
    {"role": "assistant", "content": "Runs green."},
    {"role": "user", "content": "And <|im_end|> then?"},
    {"role": "assistant", "content": "Reads </s> on."},
]
BOS = EOS = END_OF_TEXT
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def published(name: str, talk: list[dict]) -> Iterator[tuple[str, bool]]:
    """The format in plain Python: texts, and whether they are learned."""
    system = talk[0]["content"] if talk[0]["role"] == "system" else ""
    turns = talk[1:] if system else talk
    if name == "chatml":
        for m in talk:
            yield f"<|im_start|>{m['role']}\n", False
            yield f"{m['content']}<|im_end|>", m["role"] == "assistant"
            yield "\n", False
        return
    if name == "llama-3":
        yield BOS, False
        for m in talk:
            yield f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n", False
            yield f"{m['content']}<|eot_id|>", m["role"] == "assistant"
        return
    if name == "zephyr":
        for m in talk:
            yield f"<|{m['role']}|>\n", False
            yield f"{m['content']}{EOS}", m["role"] == "assistant"
            yield "\n", False
        return
    yield (
        {"alpaca": BOS + (system or ALPACA), "vicuna": f"{BOS}{system or VICUNA} ", "llama-2": ""}.get(name, BOS),
        False,
    )
    for i, m in enumerate(turns):
        asked = m["role"] == "user"
        first = system + "\n\n" if system and i == 0 else ""
        if name == "llama-2":
            first = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if first else ""
            yield (f"{BOS}[INST] {first}{m['content']} [/INST]" if asked else f" {m['content']} {EOS}"), not asked
        elif name == "mistral":
            yield (f"[INST] {first}{m['content']} [/INST]" if asked else f" {m['content']}{EOS}"), not asked
        elif name == "gemma":
            yield f"<start_of_turn>{'user' if asked else 'model'}\n{first if asked else ''}", False
            yield f"{m['content']}<end_of_turn>", not asked
            yield "\n", False
        elif name == "alpaca":
            request = f"\n\n### Instruction:\n{m['content']}\n\n### Response:"
            yield (request if asked else f"{m['content']}{EOS}"), not asked
        elif name == "vicuna":
            yield (f"USER: {m['content']} ASSISTANT:" if asked else f" {m['content']}{EOS}"), not asked


@pytest.fixture(scope="module")
def letters():
    """A tokenizer to which every byte is a token, so that what is learned can be told to the character."""
    return Tokenizer.train([], 257, special=[END_OF_TEXT])


@pytest.mark.parametrize("talk", [TALK, TALK[1:], TALK[:3]], ids=["system", "no system", "one exchange"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learned_is_what_was_published_to_the_character(letters, name, talk):
    tokenizer = with_chat(letters, name)
    (row,) = encode(scripts(talk, tokenizer), tokenizer)
    expected = list(published(name, talk))
    assert row.text == "".join(text for text, _ in expected) == render(talk, None, tokenizer)
    assert tokenizer.decode(row.ids, special=True) == row.text
    at = 0
    for text, learned in expected:
        ids = [i for part in _cut(text, tokenizer) for i in part]
        assert row.ids[at : at + len(ids)] == ids
        assert row.learned[at : at + len(ids)] == [learned] * len(ids), text
        at += len(ids)
    assert at == len(row.ids)
    answers = [m["content"] for m in talk if m["role"] == "assistant"]
    blanks = {"llama-2": 2, "mistral": 1, "vicuna": 1}.get(name, 0)
    assert row.size == sum(len(answer.encode()) + blanks for answer in answers)
    for i, m in enumerate(talk):
        if m["role"] == "assistant":  # it stops there, and a generation begins where it is asked for
            assert render(talk[: i + 1], None, tokenizer).startswith(render(talk[:i], None, tokenizer, True))
            assert tokenizer.stops & set(row.ids)


def _cut(text: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The special tokens that the template writes, and all else as bytes: what messages hold is text."""
    typed = [m["content"] for m in TALK]
    while text:
        said = next((c for c in typed if text.startswith(c)), None)
        name = next((n for n in tokenizer.special if text.startswith(n)), None)
        if said is None and name is not None:
            yield [tokenizer.special[name]]
            text = text[len(name) :]
        else:
            size = len(said) if said else 1
            yield tokenizer.encode(text[:size])
            text = text[size:]


def test_alpaca_keeps_instruction_and_input_apart(letters):
    user = {"role": "user", "content": "Add.\n\n1 and 2", "instruction": "Add.", "input": "1 and 2"}
    assert render([user], None, with_chat(letters, "alpaca"), True) == (
        f"{BOS}{ALPACA_INPUT}\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:"
    )


@pytest.mark.parametrize("name", ["llama-2", "mistral", "gemma", "alpaca", "vicuna"])
def test_formats_of_turns_refuse_others(letters, name):
    with pytest.raises(UserError, match="take turns, the user first; turn 2 is of the tool"):
        render([TALK[1], {"role": "tool", "content": "x"}], None, with_chat(letters, name))


@pytest.mark.parametrize(("name", "file"), [("llama-3", "llama3"), ("gemma", "gemma3"), ("chatml", "qwen2_5")])
def test_templates_that_come_with_models(name, file):
    theirs = carried(file)
    for talk in (TALK, TALK[:4]):
        given = {"messages": talk, "add_generation_prompt": len(talk) == 4, "bos_token": BOS, "tools": None}
        assert render_template(TEMPLATES[name][0], **given) == render_template(theirs, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["cohere", "gemma3", "glm4moe", "lfm2", "llama3", "phi3", "qwen2_5", "qwen3", "qwen3_vl", "smolvlm"]
)
def test_what_is_learned_is_what_transformers_marks(letters, file):
    """Templates of published models with the assistant's words marked in them: the same, up to each end of turn."""
    transformers = pytest.importorskip("transformers")
    source = carried(f"{file}_training")
    names = re.findall(r"<\|\w+\|>|<(?:start|end)_of_turn>|<end_of_utterance>", source)
    tokenizer = letters.add_special(sorted(set(names))).with_template(source)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, bos_token=BOS, eos_token=EOS)
    talk = [*TALK[1:4], {"role": "assistant", "content": "Reads\n\n  on. 東京 🙂"}]
    talk[2] = {"role": "user", "content": "And then?"}
    marked = theirs.apply_chat_template(talk, chat_template=source, return_dict=True, return_assistant_tokens_mask=True)
    (row,) = encode(scripts(talk, tokenizer), tokenizer)
    assert row.ids == marked["input_ids"]
    expected, over = [], False
    for i, mark in zip(row.ids, marked["assistant_masks"]):
        over = bool(mark) and over
        expected.append(int(mark and not over))
        over = over or (bool(mark) and i in tokenizer.stops)
    asked = len("\n") if file == "qwen2_5" else 0  # it marks the line break before an answer, too, which is given
    assert sum(row.learned) == sum(expected) - 2 * asked
    assert all(e >= o for e, o in zip(expected, row.learned))


def carried(file: str) -> str:
    """A template of a published model, as the package trl has it."""
    trl = find_spec("trl")
    if trl is None or trl.origin is None:
        pytest.skip("the package trl, which carries templates of published models, is not installed")
    return (Path(trl.origin).parent / "chat_templates" / f"{file}.jinja").read_text()
