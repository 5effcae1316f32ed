"""Folders of sentence-transformers, read and written; the package itself is the oracle where it is installed."""

import json
import shutil

import pytest
import torch

import onefold
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, Tokenizer
from onefold.infer.embedder import TextEmbedder
from onefold.interop.loaded import Loaded
from onefold.models import encoder_families
from onefold.models.embedder import embedder_of
from onefold.models.families import llama2

TEXTS = ["a folder of sentence-transformers", "read", "and written " * 12, "", "where it is installed"]
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SMALL = {"vocab": 320, "width": 24, "depth": 2, "context": 32, "block.mixer.heads": 4, "block.ffn.width": 40}


def made(trunk, **changes) -> TextEmbedder:
    special = ENCODER_TOKENS if trunk.kind == "decoder" else BERT_TOKENS
    tokenizer = Tokenizer.train([__doc__] * 3, 300, special=special)
    config = embedder_of(trunk).but(changes)
    torch.manual_seed(0)
    model = config.build()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return TextEmbedder(Loaded(config, model.eval(), tokenizer))


def bert(**changes) -> TextEmbedder:
    return made(encoder_families.bert().but({**SMALL, "embed.position.context": 32}), **changes)


def test_written_and_read_again_it_is_the_same(tmp_path):
    projections = ({"width": 12, "activation": "tanh"}, {"width": 7, "bias": False})
    for n, changes in enumerate(
        (
            {},
            {"pooling": "first", "normalise": False, "context": 16},
            {"projections": projections, "prompts": {"query": "find: "}, "prompt": "query"},
        )
    ):
        model = bert(**changes)
        model.save(tmp_path / str(n), "hf")
        again = onefold.load(tmp_path / str(n))
        assert torch.equal(again.embed(TEXTS), model.embed(TEXTS))
        model.save(tmp_path / f"own-{n}")
        assert onefold.load(tmp_path / f"own-{n}").config == model.config
    assert torch.equal(again.embed(TEXTS), again.embed(TEXTS, "query"))
    with pytest.raises(UserError, match="no kind of text that this model knows, only query, document"):
        again.embed(TEXTS, "passage")


def test_an_empty_prompt_is_one_too_and_a_missing_one_is_not_the_default(tmp_path):
    """Documents that need no words before them must not get those of queries."""
    for n, prompts in enumerate(({"query": "find: ", "document": ""}, {"query": "find: "})):
        model = bert(prompts=prompts, prompt="query")
        model.save(tmp_path / str(n), "hf")
        again = onefold.load(tmp_path / str(n))
        assert again.config.prompts == prompts
        plain = bert()
        plain.network.load_state_dict(model.network.state_dict())
        assert torch.equal(again.embed(TEXTS, "document"), plain.embed(TEXTS))
        assert not torch.equal(again.embed(TEXTS), plain.embed(TEXTS))


def test_what_it_cannot_say_or_does_not_know_is_a_line(tmp_path):
    with pytest.raises(UserError, match="no delimiters behind it; save it with format='onefold'"):
        bert(delimiters=(("[", "]"), ("{", "}"))).save(tmp_path / "out", "hf")
    bert().save(tmp_path / "model", "hf")
    for file, change, line in (
        (
            "modules.json",
            lambda d: d[1].update(type="sentence_transformers.models.CNN"),
            r"models\.CNN is not known here",
        ),
        ("modules.json", lambda d: d[1].update(type="custom.Pooling"), r"custom\.Pooling is not known here"),
        ("modules.json", lambda d: d[1].update(path="../outside"), "is not inside of this folder"),
        ("modules.json", lambda d: d.reverse(), "no order known here"),
        ("1_Pooling/config.json", lambda d: d.update(pooling_mode_max_tokens=True), "mean, pooling_mode_max_tokens"),
        ("1_Pooling/config.json", lambda d: d.update(include_prompt=False), "leaves out the prompt"),
        ("sentence_bert_config.json", lambda d: d.update(do_lower_case=True), "do_lower_case"),
        ("config_sentence_transformers.json", lambda d: d.update(default_prompt_name="x"), "prompt is 'x'"),
    ):
        place = shutil.copytree(tmp_path / "model", tmp_path / "broken", dirs_exist_ok=True)
        data = json.loads((place / file).read_text())
        change(data)
        (place / file).write_text(json.dumps(data))
        with pytest.raises(UserError, match=line):
            onefold.load(place)


@pytest.mark.slow
def test_sentence_transformers_gives_the_same_vectors(tmp_path):
    """What it wrote, read here; and what was written here, read there: an encoder with all modules, and a decoder."""
    package = pytest.importorskip("sentence_transformers")
    llama = llama2().but({**SMALL, "block.mixer.kv_heads": 2, "tied": True})
    models = (bert(projections=({"width": 12, "activation": "tanh"},), prompts={"query": "find: "}), made(llama))
    for n, model in enumerate(models):
        model.save(tmp_path / f"ours-{n}", "hf")
        theirs = package.SentenceTransformer(str(tmp_path / f"ours-{n}"), device="cpu")
        assert theirs.max_seq_length == 32
        texts = [text for text in TEXTS if text or n == 0]  # a decoder reads nothing of nothing
        vectors = theirs.encode(texts, convert_to_tensor=True)
        torch.testing.assert_close(model.embed(texts), vectors, atol=1e-5, rtol=0)
        theirs.save(str(tmp_path / f"theirs-{n}"))
        torch.testing.assert_close(onefold.load(tmp_path / f"theirs-{n}").embed(texts), vectors, atol=1e-5, rtol=0)
    asked = torch.tensor(package.SentenceTransformer(str(tmp_path / "theirs-0")).encode_query(TEXTS))
    torch.testing.assert_close(models[0].embed(TEXTS, "query"), asked, atol=1e-5, rtol=0)
