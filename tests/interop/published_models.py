"""Random models of every published family, as transformers makes and saves them, with awkward sizes."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
_LLAMA = dict(
    vocab_size=101, hidden_size=48, intermediate_size=88, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
_NEOX = dict(
    vocab_size=97, hidden_size=40, num_hidden_layers=3, num_attention_heads=2, intermediate_size=72,
    max_position_embeddings=64,
)  # fmt: skip
_GPT2 = dict(vocab_size=89, n_positions=40, n_embd=36, n_layer=3, n_head=3)

# family, its class in transformers, and what is awkward about this model
CASES = {
    "llama": ("Llama", _LLAMA | dict(rms_norm_eps=1e-5)),
    "llama-multi-query": ("Llama", _LLAMA | dict(num_key_value_heads=1, tie_word_embeddings=True)),
    "llama-wide-heads": ("Llama", _LLAMA | dict(head_dim=14, hidden_size=42)),
    "llama-biases": ("Llama", _LLAMA | dict(attention_bias=True, mlp_bias=True, hidden_act="gelu")),
    "llama3-rope": ("Llama", _LLAMA | dict(rope_parameters=LLAMA3_ROPE)),
    "llama-linear-rope": (
        "Llama", _LLAMA | dict(rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0})
    ),
    "mistral-window": ("Mistral", _LLAMA | dict(sliding_window=5)),
    "mistral-whole": ("Mistral", _LLAMA | dict(sliding_window=None, head_dim=10, tie_word_embeddings=True)),
    "mixtral": ("Mixtral", _LLAMA | dict(num_local_experts=5, num_experts_per_tok=3, router_jitter_noise=0.1)),
    "mixtral-window": ("Mixtral", _LLAMA | dict(num_local_experts=3, sliding_window=6, tie_word_embeddings=True)),
    "qwen2": ("Qwen2", _LLAMA | dict(tie_word_embeddings=True)),
    "qwen2-some-windows": (
        "Qwen2", _LLAMA | dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "qwen3": ("Qwen3", _LLAMA | dict(head_dim=14)),
    "qwen3-biases": ("Qwen3", _LLAMA | dict(head_dim=10, attention_bias=True, tie_word_embeddings=True)),
    "gpt2": ("GPT2", _GPT2),
    "gpt2-narrow": ("GPT2", _GPT2 | dict(n_inner=50, activation_function="relu", tie_word_embeddings=False)),
    "neox": ("GPTNeoX", _NEOX),
    "neox-sequential": (
        "GPTNeoX",
        _NEOX | dict(
            use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new",
            rope_parameters={"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.7},
        ),
    ),
    "neox-whole-rotary": (
        "GPTNeoX",
        _NEOX | dict(
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
            tie_word_embeddings=True,
        ),
    ),
}  # fmt: skip
_CAUSAL = {"GPT2": "GPT2LMHeadModel"}


def published(case: str, seed: int = 0, **changes):
    """A transformers model of random weights; norms and biases too, so that a swapped one shows."""
    import transformers

    name, settings = CASES[case]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**settings | changes)
    model = getattr(transformers, _CAUSAL.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.3 * noise if "norm" in parameter_name or "ln_" in parameter_name else 0.15 * noise)
    return model
