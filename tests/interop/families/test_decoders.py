"""Tables and configs of the published families, at their published sizes (shapes only)."""

import pytest
import torch
import transformers

from onefold.core.errors import UserError
from onefold.interop.families.config_json import canonical, read_config, write_config
from onefold.interop.families.decoders import FAMILIES
from onefold.interop.gguf.model import _table
from onefold.interop.table import own_weights
from onefold.models import encoder_families as encoders
from onefold.models import families
from onefold.models.transformer import DecoderConfig

PRESETS = {
    **{f"gpt2 {size}": families.gpt2(size) for size in families.GPT2},
    **{f"gpt_neox {size}": families.pythia(size) for size in families.PYTHIA},
    **{f"llama {size}": families.llama2(size) for size in families.LLAMA2},
    **{f"llama {size}": families.llama3(size) for size in families.LLAMA3},
    **{f"mistral {size}": families.mistral(size) for size in ("7b", "7b-v0.3")},
    **{f"mixtral {size}": families.mixtral(size) for size in families.MIXTRAL},
    **{f"qwen2 {size}": families.qwen2(size) for size in families.QWEN2},
    **{f"qwen3 {size}": families.qwen3(size) for size in families.QWEN3},
    **{f"bert {size}": encoders.bert(size) for size in encoders.BERT},
    **{f"bert minilm-{size}": encoders.minilm(size) for size in encoders.MINILM},
    **{f"roberta {size}": encoders.roberta(size) for size in encoders.BERT},
    **{f"albert {size}": encoders.albert(size) for size in encoders.ALBERT},
    "esm 1b": encoders.esm1b(),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_published_size_is_said_and_understood(name):
    family, written = write_config(PRESETS[name])
    expected = name.split()[0]
    assert family.name == ("llama" if name == "mistral 7b-v0.3" else expected)  # without a window it is a Llama
    again, config, unknown = read_config(written, "config.json")
    assert (again.name, unknown) == (family.name, [])
    assert canonical(config) == canonical(PRESETS[name])
    preferred, _ = write_config(PRESETS[name], prefer=expected)
    assert preferred.name == expected


@pytest.mark.parametrize(
    "name",
    [
        *("gpt2 small", "gpt_neox 70m", "llama 7b", "llama 3.2-1b", "mistral 7b", "qwen2 0.5b", "qwen3 0.6b"),
        *("bert base", "bert minilm-l6", "roberta large", "albert xxlarge", "esm 1b"),
    ],
)
def test_names_and_shapes_are_those_of_transformers(name):
    family, written = write_config(PRESETS[name])
    settings = {key: value for key, value in written.items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        ours = PRESETS[name].build()
        theirs = getattr(transformers, written["architectures"][0])(
            transformers.AutoConfig.for_model(family.name, **settings)
        )
    shapes = {name: tensor.shape for name, tensor in family.table.write(ours.config, own_weights(ours)).items()}
    expected = {name.replace("lm_head", "embed_out") if family.name == "gpt_neox" else name: parameter.shape
                for name, parameter in theirs.named_parameters()}  # fmt: skip
    assert shapes == expected


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2", "gptneox"])
def test_gguf_names_are_those_of_the_format(architecture):
    import gguf

    preset = {"llama": "llama 7b", "qwen2": "qwen2 0.5b", "qwen3": "qwen3 0.6b", "gpt2": "gpt2 small"}
    config = PRESETS[preset.get(architecture, "gpt_neox 70m")]
    with torch.device("meta"):
        ours = config.build()
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    known = {
        gguf.TENSOR_NAMES[tensor].format(bid=i) for tensor in gguf.MODEL_TENSORS[number] for i in range(config.depth)
    }
    names = {name.rpartition(".")[0] for name in _table(architecture).write(config, own_weights(ours))}
    assert names <= known


def test_what_a_family_cannot_say_is_not_written():
    llama = FAMILIES["llama"]
    assert write_config(PRESETS["llama 7b"])[0] is llama
    alibi = PRESETS["llama 7b"].but({"block.mixer.position": {"kind": "alibi"}})
    for other in (alibi, PRESETS["llama 7b"].but({"block.mixer": {"kind": "s4d"}})):
        with pytest.raises(UserError, match="no published family"):
            write_config(other)
    pyramid = PRESETS["llama 3.2-1b"].but({"pattern": [{}]})
    assert write_config(pyramid)[0] is llama  # a pattern that changes nothing
    narrow = DecoderConfig.from_dict(PRESETS["llama 3.2-1b"].to_dict() | {"pattern": [{}, {"ffn.width": 64}]})
    with pytest.raises(UserError, match=r"layer 1.ffn.width is 64, not 8192"):
        write_config(narrow)
    biased = PRESETS["qwen2 0.5b"].but({"block.mixer.out_bias": True})
    assert write_config(biased)[0].name == "llama"


def test_defaults_of_a_silent_config_are_those_of_the_class():
    for name, family in FAMILIES.items():
        needed = {"vocab_size": 33} if name == "esm" else {}  # its class has no default for it
        _, config, _ = read_config({"model_type": name, **needed}, "config.json")
        full = transformers.AutoConfig.for_model(name, **needed).to_dict()
        _, expected, _ = read_config(full, "config.json")
        assert canonical(config) == canonical(expected), family.name
