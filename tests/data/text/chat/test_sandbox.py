import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from onefold.core.errors import UserError
from onefold.data.text.chat.sandbox import DEFAULT_TEMPLATE, MAX_TEXT, render_template

MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": '1 < 2 & "quotes" 東京'},
    {"role": "assistant", "content": "Yes."},
]
# In the manner of published templates.
CHATML = """{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
INST = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}
    {% if loop.first and system_message is defined %}
        {% set content = '<<SYS>>\\n' ~ system_message.strip() ~ '\\n<</SYS>>\\n\\n' ~ message['content'] %}
    {% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}{{ '[INST] ' + content.strip() + ' [/INST]' }}
    {% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}"""
TOOLS = """{% if tools is none %}no tools{% endif %}{% macro show(m) %}{{ m | tojson }}{% endmacro %}
{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ show(m) }}{% endfor %}
{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content.split(' ') | length %}{% continue %}
{% endfor %}{{ ns.n }} {{ messages | map(attribute='role') | join(', ') }} {{ 'a,b'.split(',')[-1] }}
{{ messages[1].content.replace('1', 'one') }}{{ {'k': [1, 'é']} | tojson(indent=2) }}"""


@pytest.mark.parametrize("template", [DEFAULT_TEMPLATE, CHATML, INST, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers_does(template, prompt):
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    [theirs], _ = render_jinja_template([MESSAGES], chat_template=template, add_generation_prompt=prompt, **variables)
    ours = render_template(
        template, messages=MESSAGES, add_generation_prompt=prompt, tools=None, documents=None, **variables
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% include 'x' %}",
        "{{ cycler('a').__init__ }}",
        "{{ lipsum(100) }}",
        "{{ 9 ** 99999999 }}",
        "{{ 'a' * 1000000000 }}",
        "{{ ['a'] * 1000000000 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'a\nb' | indent(1000000000) | length }}{{ 1 // 0 }}",
        "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x | replace('a', n.x) %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x.join(['', '', n.x]) %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set step__ = namespace %}",
        "{% macro step__() %}{% endmacro %}",
        "{% for step__ in messages %}{% endfor %}",
        "{% if %}",
        "{{ messages[0].content.nothing.at.all }}",
        "{{ messages[0] + 1 }}",
        "x" * 300_000,
    ],
)
def test_hostile_or_broken_templates_end_in_a_line(template):
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        render_template(template, messages=[dict(m) for m in MESSAGES])
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 5


def test_endless_loops_are_stopped(monkeypatch):
    monkeypatch.setattr("onefold.data.text.chat.sandbox.MAX_STEPS", 20_000)
    nested = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match="steps"):
        render_template(nested, messages=MESSAGES)


def test_a_refusal_says_why():
    with pytest.raises(UserError, match="only cats"):
        render_template("{{ raise_exception('only cats') }}", messages=MESSAGES)
    with pytest.raises(UserError, match="not narrator"):
        render_template(DEFAULT_TEMPLATE, messages=[{"role": "narrator", "content": "x"}], bos_token="")


def test_long_conversations_are_no_attack():
    messages = [{"role": "user", "content": "x" * (MAX_TEXT // 4000)}] * 2000
    assert len(render_template(CHATML, messages=messages)) > MAX_TEXT // 4


def test_marked_generation_is_rendered():
    template = "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %} {% endfor %}"
    assert render_template(template, messages=MESSAGES) == "system user assistant "
