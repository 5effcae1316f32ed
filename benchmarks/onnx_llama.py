"""A Llama-shaped decoder as an ONNX graph of ONNX Runtime's own fused operators, as its generation tools write them.

Keys and values stay in buffers that the runtime appends to in place; nothing is copied between steps.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from onefold.models.transformer import Decoder

FUSED = "com.microsoft"


class _Graph:
    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def add(self, kind: str, inputs: list[str], outputs: list[str] | str, domain: str = "", **attributes) -> str:
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def linear(self, x: str, name: str, weight: torch.Tensor) -> str:
        return self.add("MatMul", [x, self.constant(name, weight.detach().T.numpy())], f"{name}.y")

    def norm(self, x: str, name: str, norm: torch.nn.Module) -> str:
        weight = self.constant(name, norm.weight.detach().numpy())
        return self.add("SimplifiedLayerNormalization", [x, weight], f"{name}.y", epsilon=norm.eps, axis=-1)


def export(network: Decoder, capacity: int, file: Path) -> None:
    """A step. In: tokens Long[B, T], columns after it (less one: lengths Int[B]; total Int[]), past keys and values.

    Out: next Long[B], and the present keys and values.
    """
    g, mixer = _Graph(), network.blocks[0].mixer
    heads, kv_heads, width = mixer.heads, mixer.kv_heads, mixer.head_width
    angles = mixer.config.position.angles(torch.arange(capacity)[None], width)[0]
    g.constant("cos", angles.cos().numpy())
    g.constant("sin", angles.sin().numpy())
    x = g.add("Gather", [g.constant("embed", network.embed.token.weight.detach().numpy()), "tokens"], "x")
    for i, block in enumerate(network.blocks):
        qkv = g.linear(g.norm(x, f"{i}.norm1", block.mixer_norm), f"{i}.qkv", block.mixer.qkv.weight)
        inputs = [qkv, "", "", f"{i}.k", f"{i}.v", "lengths", "total", "cos", "sin"]
        shape = dict(num_heads=heads, kv_num_heads=kv_heads, do_rotary=1)
        y = g.add("GroupQueryAttention", inputs, [f"{i}.y", f"{i}.k+", f"{i}.v+"], FUSED, **shape)
        x = g.add("Add", [x, g.linear(y, f"{i}.out", block.mixer.out.weight)], f"{i}.x1")
        both = g.linear(g.norm(x, f"{i}.norm2", block.ffn_norm), f"{i}.gate_up", block.ffn.gate_up.weight)
        g.add("Split", [both], [f"{i}.gate", f"{i}.up"], axis=-1, num_outputs=2)
        gate = g.add("QuickGelu", [f"{i}.gate"], f"{i}.silu", FUSED, alpha=1.0)  # x · sigmoid(x)
        down = g.linear(g.add("Mul", [gate, f"{i}.up"], f"{i}.h"), f"{i}.down", block.ffn.out.weight)
        x = g.add("Add", [x, down], f"{i}.x2")
    last = g.add("Gather", [g.norm(x, "norm", network.norm), g.constant("-1", np.array(-1))], "last", axis=1)
    g.add("ArgMax", [g.linear(last, "unembed", network.unembed.weight)], "next", axis=-1, keepdims=0)

    def cache(name: str):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", kv_heads, capacity, width])

    layers = range(len(network.blocks))
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "T"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        helper.make_tensor_value_info("total", TensorProto.INT32, []),
        *(cache(f"{i}.{c}") for i in layers for c in "kv"),
    ]
    outputs = [helper.make_tensor_value_info("next", TensorProto.INT64, ["B"])]
    outputs += [cache(f"{i}.{c}+") for i in layers for c in "kv"]
    graph = helper.make_graph(g.nodes, "decoder", inputs, outputs, g.constants)
    versions = [helper.make_opsetid("", 18), helper.make_opsetid(FUSED, 1)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=9), file)


def decoder(network: Decoder, rows: int, capacity: int, file: Path):
    """A function (prompts of one length, how many tokens) -> new tokens, greedy, in one thread."""
    export(network, capacity, file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    mixer = network.blocks[0].mixer
    shape = (rows, mixer.kv_heads, capacity, mixer.head_width)
    caches = [f"{i}.{c}" for i in range(len(network.blocks)) for c in "kv"]
    buffers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for name in caches}

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        tokens, written, read = np.array(prompts), [], 0
        for _ in range(new):
            read += tokens.shape[1]
            binding = session.io_binding()
            binding.bind_cpu_input("tokens", tokens)
            binding.bind_cpu_input("lengths", np.full(rows, read - 1, np.int32))
            binding.bind_cpu_input("total", np.array(read, np.int32))
            binding.bind_output("next")
            for name, buffer in buffers.items():
                binding.bind_ortvalue_input(name, buffer)
                binding.bind_ortvalue_output(f"{name}+", buffer)
            session.run_with_iobinding(binding)
            tokens = binding.copy_outputs_to_cpu()[0][:, None]
            written.append(tokens[:, 0])
        return np.stack(written, axis=1).tolist()

    return run
