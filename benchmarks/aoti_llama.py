"""The benchmark's Llama in plain PyTorch with a static cache, exported and compiled ahead of time by AOTInductor."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package, aoti_load_package


class Step(nn.Module):
    """tokens [B, T] at `places` [T], caches [layers, B, H, S, Dh], which it writes → the likeliest next token [B]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        mixer = network.config.block.mixer
        self.heads, self.eps = mixer.heads, network.config.norm.eps
        width = network.config.width // self.heads
        self.register_buffer("frequencies", mixer.position.theta ** (-torch.arange(0, width, 2) / width))

    def norm(self, x: Tensor, norm: nn.Module) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], norm.weight, self.eps)

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, tokens: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        B, T = tokens.shape
        angles = places[:, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        mask = torch.arange(keys.shape[3]) <= places[:, None]
        x = self.network.embed.token.weight[tokens]
        for i, block in enumerate(self.network.blocks):
            qkv = F.linear(self.norm(x, block.mixer_norm), block.mixer.qkv.weight)
            q, k, v = qkv.view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            keys[i].index_copy_(2, places, self.turn(k, cos, sin))
            values[i].index_copy_(2, places, v)
            y = F.scaled_dot_product_attention(self.turn(q, cos, sin), keys[i], values[i], attn_mask=mask)
            x = x + F.linear(y.transpose(1, 2).reshape(B, T, -1), block.mixer.out.weight)
            gate, up = F.linear(self.norm(x, block.ffn_norm), block.ffn.gate_up.weight).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, block.ffn.out.weight)
        return F.linear(self.norm(x[:, -1], self.network.norm), self.network.unembed.weight).argmax(-1)


def decoder(network: nn.Module, rows: int, prompt: int, capacity: int, folder: Path) -> Callable:
    """(prompts, how many tokens) → new tokens, greedily: one compiled graph for the prompt, one for a token."""
    config, step = network.config, Step(network).eval()
    shape = (config.depth, rows, config.block.mixer.heads, capacity, config.width // config.block.mixer.heads)
    keys, values = torch.zeros(shape), torch.zeros(shape)
    graphs = {}
    for length in (prompt, 1):
        example = (torch.zeros(rows, length, dtype=torch.long), torch.arange(length), keys, values)
        with torch.no_grad():
            exported = torch.export.export(step, example)
            file = str(folder / f"aoti-{rows}-{length}.pt2")
            aoti_compile_and_package(exported, package_path=file, inductor_configs={"freezing": True})
        graphs[length] = aoti_load_package(file)

    @torch.no_grad()
    def run(prompts, new):
        found = [graphs[prompt](torch.tensor(prompts), torch.arange(prompt), keys, values)]
        for place in range(prompt, prompt + new - 1):
            found.append(graphs[1](found[-1][:, None], torch.tensor([place]), keys, values))
        return torch.stack(found, 1).tolist()

    return run
