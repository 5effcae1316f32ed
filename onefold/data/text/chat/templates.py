"""Chat templates by name: the formats that published models were tuned with, as short Jinja programs.

Each comes with the special tokens that it needs beside those of the tokenizer, which says itself what begins and ends a
text. A first message of the system stands where the format has a place for it, else before the user's first words.
"""

_SYSTEM = (  # sets `system`, "" where there is none, and `turns`, the rest
    "{% set first = messages[0].role if messages else '' %}"
    "{% set turns = messages[1:] if first in ('system', 'developer') else messages %}"
    "{% set system = messages[0].content if first in ('system', 'developer') else '' %}"
)
_TURN = (  # opens the loop over `turns`
    "{% for m in turns %}{% if m.role != ('user' if loop.index0 is even else 'assistant') %}"
    "{{ raise_exception('in this format the user and the assistant take turns, the user first; turn ' ~ loop.index ~ "
    "' is of the ' ~ m.role) }}{% endif %}"
)

# OpenAI's chat markup language; Qwen, SmolLM2 and many others.
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Llama 2 Chat (Touvron et al. 2023, arXiv 2307.09288, and its reference code): every exchange is a text of its own.
_LLAMA_2 = (
    _SYSTEM
    + _TURN
    + "{% if m.role == 'user' %}{{ bos_token ~ '[INST] ' }}"
    + "{% if loop.first and system %}{{ '<<SYS>>\\n' ~ system | trim ~ '\\n<</SYS>>\\n\\n' }}{% endif %}"
    + "{{ m.content | trim ~ ' [/INST]' }}"
    + "{% else %}{{ ' ' ~ m.content | trim ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
)
# Llama 3 and later (Meta's model card: prompt format).
_LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ m.content | trim ~ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# Mistral 7B Instruct v0.1 and v0.2 (their model cards); the brackets are plain text.
_MISTRAL = (
    _SYSTEM
    + "{{ bos_token }}"
    + _TURN
    + "{% if m.role == 'user' %}{{ '[INST] ' ~ (system ~ '\\n\\n' if loop.first and system else '') ~ m.content }}"
    + "{{ ' [/INST]' }}{% else %}{{ ' ' ~ m.content | trim ~ eos_token }}{% endif %}{% endfor %}"
)
# Zephyr 7B (Tunstall et al. 2023, arXiv 2310.16944); the names are plain text there.
_ZEPHYR = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\\n' ~ m.content ~ eos_token ~ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# Gemma, 1 to 3 (Google's documentation: formatting). The system speaks through the user, as in Gemma 3.
_GEMMA = (
    _SYSTEM
    + "{{ bos_token }}"
    + _TURN
    + "{{ '<start_of_turn>' ~ ('user' if m.role == 'user' else 'model') ~ '\\n' }}"
    + "{{ (system ~ '\\n\\n' if loop.first and system else '') ~ m.content | trim ~ '<end_of_turn>\\n' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
# Stanford Alpaca (Taori et al. 2023). Rows of that shape keep their `instruction` and `input` apart; further turns are
# ours. The system's words take the place of the opening sentence.
_ALPACA = (
    _SYSTEM
    + "{{ bos_token }}{% set first = turns[0] if turns else {} %}"
    + "{% if system %}{{ system }}{% elif first.input %}{{ 'Below is an instruction that describes a task, paired with "
    + "an input that provides further context. Write a response that appropriately completes the request.' }}"
    + "{% else %}{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the "
    + "request.' }}{% endif %}"
    + _TURN
    + "{% if m.role == 'user' %}{{ '\\n\\n### Instruction:\\n' ~ (m.instruction if m.input else m.content) }}"
    + "{% if m.input %}{{ '\\n\\n### Input:\\n' ~ m.input }}{% endif %}{{ '\\n\\n### Response:' }}"
    + "{% else %}{{ m.content ~ eos_token }}{% endif %}{% endfor %}"
)
# Vicuna v1.1 and later (Chiang et al. 2023; FastChat).
_VICUNA = (
    _SYSTEM
    + "{{ bos_token ~ (system or 'A chat between a curious user and an artificial intelligence assistant. "
    + "The assistant gives helpful, detailed, and polite answers to the user\\'s questions.') ~ ' ' }}"
    + _TURN
    + "{% if m.role == 'user' %}{{ 'USER: ' ~ m.content ~ ' ASSISTANT:' }}"
    + "{% else %}{{ ' ' ~ m.content ~ eos_token }}{% endif %}{% endfor %}"
)

TEMPLATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "chatml": (_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama-2": (_LLAMA_2, ()),
    "llama-3": (_LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral": (_MISTRAL, ()),
    "zephyr": (_ZEPHYR, ()),
    "gemma": (_GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "alpaca": (_ALPACA, ()),
    "vicuna": (_VICUNA, ()),
}
