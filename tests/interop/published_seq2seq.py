"""Random encoder-decoders of every published family, as transformers makes and saves them, with awkward sizes."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

_T5 = dict(
    vocab_size=61, d_model=24, d_kv=5, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=4,
    relative_attention_num_buckets=12, relative_attention_max_distance=20, decoder_start_token_id=0,
)  # fmt: skip
_SWITCH = _T5 | dict(num_experts=3, num_decoder_layers=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=2)
_BART = dict(
    vocab_size=61, d_model=24, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=40, decoder_ffn_dim=36,
    encoder_attention_heads=6, decoder_attention_heads=4, max_position_embeddings=38,
)  # fmt: skip
_MARIAN = _BART | dict(
    pad_token_id=60, decoder_start_token_id=60, activation_function="swish", scale_embedding=True,
    bad_words_ids=[[60]],
)  # fmt: skip

# class in transformers, its config
CASES = {
    "t5": ("T5ForConditionalGeneration", _T5),
    "t5-v1.1": ("T5ForConditionalGeneration", _T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "switch": ("SwitchTransformersForConditionalGeneration", _SWITCH),
    "switch-everywhere": (
        "SwitchTransformersForConditionalGeneration",
        _SWITCH | dict(num_sparse_encoder_layers=2, num_sparse_decoder_layers=1, dense_act_fn="gelu_new"),
    ),
    "bart": ("BartForConditionalGeneration", _BART | dict(forced_bos_token_id=0)),
    "bart-scaled": ("BartForConditionalGeneration", _BART | dict(scale_embedding=True, activation_function="relu")),
    "marian": ("MarianMTModel", _MARIAN),
}


def published(case: str, seed: int = 0, std: float = 0.2):
    """A transformers model of random weights; norms and biases too, so that a swapped one shows.

    The head of T5 1.1 is its own.
    """
    import transformers

    name, settings = CASES[case]
    config = getattr(transformers, name.replace("ForConditionalGeneration", "").replace("MTModel", "") + "Config")
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config(**settings)).eval()
    if case == "t5-v1.1":
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    sines = [module.weight for n, module in model.named_modules() if n.endswith("embed_positions") and case == "marian"]
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if not any(parameter is sine for sine in sines):
                norm = parameter.ndim == 1 and parameter_name.endswith("weight")
                parameter.normal_(mean=1.0 if norm else 0.0, std=0.1 if parameter_name.endswith("bias") else std)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(std=0.5)
    return model


def saved(case: str, folder, **options):
    """The model, and the folder that transformers wrote."""
    model = published(case, **options)
    model.save_pretrained(folder)
    return model
