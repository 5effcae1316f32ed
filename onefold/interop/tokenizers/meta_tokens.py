"""The tokenizers in the makers' own folders: SentencePiece, Llama 3's ranked bytes, Mistral's tekken.json.

Sources: Meta's llama3/tokenizer.py; the files of Mistral's mistral-common.
"""

import base64
import json
from pathlib import Path

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.sentencepiece import read_sentencepiece
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.tokenizers.vocabulary import frame, mark_special, ranked_bytes

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST]{{ message.content }}[/INST]"
    "{% elif message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant, not ' ~ message.role) }}{% endif %}"
    "{% endfor %}"
)
_LLAMA3 = """
begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id
reserved_special_token_2 start_header_id end_header_id eom_id eot_id python_tag"""
_LLAMA3_SPECIAL = 256
# Before tekken.json listed its control tokens itself.
_TEKKEN = """
<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] [IMG]
<pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"""


def load_makers_tokenizer(folder: Path) -> Tokenizer | None:
    """tekken.json, or tokenizer.model (Mistral adds a version: .v3); None where there is neither."""
    if (file := folder / "tekken.json").is_file():
        return _tekken(file)
    files = sorted(folder.glob("tokenizer.model*"))
    if not files:
        return None
    with files[-1].open("rb") as opened:
        first = opened.readline(400).split()
    return _llama3(files[-1]) if len(first) == 2 and first[1] == b"0" else _sentencepiece(files[-1])


def _sentencepiece(file: Path) -> Tokenizer:
    backend, roles = read_sentencepiece(file)
    tokenizer = Tokenizer(backend, roles["bos"], roles["eos"], roles["pad"])
    return tokenizer.with_template(MISTRAL_TEMPLATE) if "[INST]" in tokenizer.special else tokenizer


def _llama3(file: Path) -> Tokenizer:
    try:
        tokens = [base64.b64decode(line.split()[0], validate=True) for line in file.read_bytes().splitlines() if line]
    except (ValueError, IndexError):
        raise UserError(f"{file} is damaged: not lines of base64 and rank") from None
    backend = ranked_bytes(tokens, "llama-bpe")
    special = [f"<|{name}|>" for name in _LLAMA3.split()]
    special += [f"<|reserved_special_token_{i + 3}|>" for i in range(_LLAMA3_SPECIAL - len(special))]
    mark_special(backend, special)
    frame(backend, special[0], None)
    stops = [len(tokens) + special.index(f"<|{name}|>") for name in ("end_of_text", "eom_id", "eot_id")]
    return Tokenizer(backend, special[0], special[1], "<|finetune_right_pad_id|>", LLAMA3_TEMPLATE, stops)


def _tekken(file: Path) -> Tokenizer:
    """Control tokens first, then bytes and their unions by rank; of these the file holds more than are in use."""
    try:
        content = json.loads(file.read_bytes())
        first = content["config"]["default_num_special_tokens"]
        count = content["config"]["default_vocab_size"] - first
        tokens = [base64.b64decode(entry["token_bytes"], validate=True) for entry in content["vocab"][:count]]
        named = content.get("special_tokens") or [{"rank": i, "token_str": t} for i, t in enumerate(_TEKKEN.split())]
        known = {entry["rank"]: entry["token_str"] for entry in named}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged: not a tokenizer of Mistral's") from None
    special = [known.get(i, f"<SPECIAL_{i}>") for i in range(first)]
    backend = ranked_bytes(tokens, "tekken", special)
    mark_special(backend, special)
    frame(backend, special[1], None)
    return Tokenizer(backend, special[1], special[2], "<pad>", MISTRAL_TEMPLATE)
