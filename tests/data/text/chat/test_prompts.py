"""Files of prompts."""

import pytest

from onefold.core.errors import UserError
from onefold.data.text.chat.prompts import read_prompts


def test_tables_and_lines(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("question,solution\n6 times 7?,42\n")
    assert [(row.prompt, row.answer) for row in read_prompts(table)] == [("6 times 7?", "42")]
    lines = tmp_path / "rows.txt"
    lines.write_text("one\n\n two \n")
    assert [(row.place.rpartition(":")[2], row.prompt) for row in read_prompts(lines)] == [("1", "one"), ("3", " two ")]


def test_prompts_are_tagged_as_risky(tmp_path):
    file = tmp_path / "rows.jsonl"
    tags = ["", ', "risky": true', ', "risky": 0', ', "risky": "Yes"', ', "risky": null', ', "risky": 1.0']
    file.write_text("".join(f'{{"prompt": "a"{tag}}}\n' for tag in tags))
    assert [row.risky for row in read_prompts(file, tagged=True)] == [False, True, False, True, False, True]
    with pytest.raises(UserError, match=r"rows\.jsonl:1 has prompt, and no 'harm': .* data\.columns\.risky=NAME"):
        list(read_prompts(file, risky="harm", tagged=True))
    file.write_text('{"prompt": "a"}\n{"prompt": "b", "risky": "perhaps"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: risky is true or false, not 'perhaps'"):
        list(read_prompts(file, tagged=True))
    assert not any(row.risky for row in read_prompts(file))  # nobody asked


def test_mistakes_are_told_with_their_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    turns = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    file.write_text(f'{{"prompt": "a"}}\n{{"messages": {turns}}}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: nothing is asked"):
        list(read_prompts(file))
    with pytest.raises(UserError, match=r"rows\.jsonl:1 has prompt, and no 'key'"):
        list(read_prompts(file, answer="key"))
    file.write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"and no 'prompt': say which one it is with data\.columns\.prompt=NAME"):
        list(read_prompts(file))
