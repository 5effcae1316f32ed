"""llama.cpp as an oracle, in a process of its own (a crash there is a failed test, not the end of the suite)."""

import fcntl
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

_PROGRAM = """
import json, sys, urllib.request
import xllamacpp

answers = []
for job in json.loads(sys.stdin.read()):
    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = job["context"], 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)

    def post(route, body):
        address = server.listening_address + route
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=60))

    answer = {}
    if "tokenize" in job:
        bodies = [{"content": text, "parse_special": True} for text in job["tokenize"]]
        answer["tokens"] = [post("/tokenize", body)["tokens"] for body in bodies]
    settings = {"temperature": 0, "ignore_eos": True, "return_tokens": True, "cache_prompt": False}
    if "prompt" in job:
        said = post("/completion", {**settings, "prompt": job["prompt"], "n_predict": job["n"]})
        answer |= {"ids": said["tokens"], "text": said["content"]}
    if "scored" in job:
        answer["top"] = []
        for prompt in job["scored"]:
            said = post("/completion", {**settings, "prompt": prompt, "n_predict": 1, "n_probs": 5})
            first = said.get("completion_probabilities")  # absent after half a character
            answer["top"].append(first and [(token["id"], token["logprob"]) for token in first[0]["top_logprobs"]])
    answers.append(answer)
    del server
print("ANSWERS" + json.dumps(answers), flush=True)
import os
os._exit(0)
"""


def ask(*jobs: dict) -> list[dict]:
    """Open each job's model; `tokenize` texts, continue `prompt` greedily by `n` tokens, and give the five likeliest
    tokens after each of the `scored` prompts. Prompts are texts or ids."""
    pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
    jobs = [{"context": 256, **job, "model": str(Path(job["model"]))} for job in jobs]
    with (Path(tempfile.gettempdir()) / "onefold-llama-oracle.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # one server at a time: two that start together can wait for each other
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], input=json.dumps(jobs), capture_output=True, text=True, timeout=170
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
    assert lines, f"llama.cpp failed ({done.returncode}): {done.stdout[-1500:]}{done.stderr[-1500:]}"
    return json.loads(lines[-1].removeprefix("ANSWERS"))
