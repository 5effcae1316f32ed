"""Random encoders of every published family and head, as transformers makes and saves them, with awkward sizes."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

_BERT = dict(
    vocab_size=101, hidden_size=48, intermediate_size=88, num_hidden_layers=3, num_attention_heads=6,
    max_position_embeddings=40, type_vocab_size=3,
)  # fmt: skip
_ALBERT = _BERT | dict(embedding_size=20, num_hidden_groups=2)
_ESM = dict(
    vocab_size=33, hidden_size=48, intermediate_size=88, num_hidden_layers=3, num_attention_heads=6,
    max_position_embeddings=42, layer_norm_eps=1e-5, emb_layer_norm_before=True, token_dropout=True, mask_token_id=32,
    pad_token_id=1,
)  # fmt: skip
_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")

# class in transformers, its config, what is awkward about this model
CASES = {
    **{f"Bert{head}": ("Bert", f"Bert{head}", _BERT) for head in (*_HEADS, "ForPreTraining")},
    **{f"Roberta{head}": ("Roberta", f"Roberta{head}", _BERT | dict(layer_norm_eps=1e-5)) for head in _HEADS},
    **{f"Albert{head}": ("Albert", f"Albert{head}", _ALBERT) for head in (*_HEADS, "ForPreTraining")},
    **{f"Esm{head}": ("Esm", f"Esm{head}", _ESM) for head in _HEADS[:-1]},
    "XLMRoberta": ("XLMRoberta", "XLMRobertaForMaskedLM", _BERT | dict(type_vocab_size=1)),
    "three-classes": ("Bert", "BertForSequenceClassification", _BERT | dict(num_labels=3, hidden_act="gelu_new")),
    "esm2": (
        "Esm", "EsmForMaskedLM", _ESM | dict(position_embedding_type="rotary", emb_layer_norm_before=False)
    ),
    "esm-plain": ("Esm", "EsmForMaskedLM", _ESM | dict(token_dropout=False)),
}  # fmt: skip


def published(case: str, seed: int = 0, **changes):
    """A transformers model of random weights; norms and biases too, so that a swapped one shows."""
    import transformers

    family, name, settings = CASES[case]
    torch.manual_seed(seed)
    model = getattr(transformers, name)(getattr(transformers, f"{family}Config")(**settings | changes)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            norm = "norm" in parameter_name.lower() and parameter_name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if norm else 0.15 * noise)
    return model


@torch.no_grad()
def said(model, tokens, mask, types=None) -> dict[str, torch.Tensor]:
    """What a transformers model says of padded rows, by our names: features, head, classify."""
    given = {} if types is None else {"token_type_ids": types}
    out = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True, **given)
    name, found = type(model).__name__, {}
    if "pooler_output" in out:
        found["pool"] = out.pooler_output
    if name.endswith("Model"):
        found["features"] = out.last_hidden_state
    elif name.endswith("MaskedLM"):
        found["head"] = out.logits
    elif name.endswith("PreTraining"):
        found["head"] = out.prediction_logits
        found["classify"] = out.seq_relationship_logits if "seq_relationship_logits" in out else out.sop_logits
    elif name.endswith("QuestionAnswering"):
        found["classify"] = torch.stack((out.start_logits, out.end_logits), -1)
    else:
        found["classify"] = out.logits
    return found
