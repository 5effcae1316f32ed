import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.core.errors import UserError
from onefold.data.text.chat import files as chat_files
from onefold.data.text.chat.files import conversation, read_conversations
from onefold.data.text.chat.messages import encode, scripts, with_chat

USER, ANSWER = {"role": "user", "content": "the river?"}, {"role": "assistant", "content": "runs green"}
SYSTEM = {"role": "system", "content": "be brief"}
SHAREGPT = [{"from": "human", "value": "the river?"}, {"from": "gpt", "value": "runs green"}]
JOINED = {"role": "user", "content": "Add.\n\n1, 2", "instruction": "Add.", "input": "1, 2"}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [USER, ANSWER], "id": 7}, [USER, ANSWER]),
        ([SYSTEM, USER, ANSWER], [SYSTEM, USER, ANSWER]),
        ({"conversations": SHAREGPT}, [USER, ANSWER]),
        ({"conversations": SHAREGPT, "system": "be brief"}, [SYSTEM, USER, ANSWER]),
        ({"conversations": [USER, ANSWER]}, [USER, ANSWER]),
        ({"instruction": "the river?", "input": "", "output": "runs green"}, [USER, ANSWER]),
        ({"instruction": "Add.", "input": "1, 2", "output": "runs green"}, [JOINED, ANSWER]),
        ({"instruction": "Add.", "context": "1, 2", "response": "runs green"}, [JOINED, ANSWER]),
        ({"prompt": "the river?", "completion": "runs green"}, [USER, ANSWER]),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, [USER, {**ANSWER, "weight": 0}, USER, ANSWER]),
        ({"messages": [USER, {**ANSWER, "weight": 1, "train": True}]}, [USER, ANSWER]),
        ({"messages": [USER, {**ANSWER, "train": False}, USER, ANSWER]}, [USER, {**ANSWER, "weight": 0}, USER, ANSWER]),
        ({"messages": [{**USER, "content": [{"type": "text", "text": "the "}, "river?"]}, ANSWER]}, [USER, ANSWER]),
        ({"messages": [{**USER, "name": None}, {**ANSWER, "tool_calls": None}], "tools": None}, [USER, ANSWER]),
    ],
)
def test_shapes(tmp_path, row, messages):
    file = tmp_path / "chat.jsonl"
    file.write_text("\n" + json.dumps(row) + "\n")
    assert list(read_conversations(file)) == [("chat.jsonl:2", messages)]


def test_kinds_of_files(tmp_path):
    rows = [{"messages": [USER, {**ANSWER, "content": f"answer {i}"}]} for i in range(300)]
    expected = [row["messages"] for row in rows]

    def read(name):
        return list(read_conversations(tmp_path / name))

    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "d.json").write_text("\n".join(json.dumps(row, indent=1) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.json", "e.parquet"):
        assert [messages for _, messages in read(name)] == expected, name
    line = (tmp_path / "c.json").read_text()[: (tmp_path / "c.json").read_text().index("answer 7")].count("\n")
    assert abs(int(read("c.json")[7][0].split(":")[1]) - line) < 12  # where its row begins
    assert read("e.parquet")[7][0] == "e.parquet:8"
    (tmp_path / "f.csv").write_text('instruction,input,output\nthe river?,,"runs\ngreen"\n')
    assert read("f.csv")[0][1] == [USER, {**ANSWER, "content": "runs\ngreen"}]


def test_json_lists_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_files, "PART", 7)
    rows = [{"conversations": [SHAREGPT[0], {"from": "gpt", "value": "é" * i + "x"}]} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    found = list(read_conversations(tmp_path / "a.json"))
    assert [m[1]["content"] for _, m in found] == ["é" * i + "x" for i in range(20)]
    text = json.dumps(rows, indent=2)
    (tmp_path / "b.json").write_text(text[:-4])
    with pytest.raises(UserError, match=r"b\.json:\d+: not valid JSON"):
        list(read_conversations(tmp_path / "b.json"))
    (tmp_path / "c.json").write_text(text[:-1])
    with pytest.raises(UserError, match=rf"c\.json:{text.count(chr(10)) + 1}: the list does not end"):
        list(read_conversations(tmp_path / "c.json"))


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": '{"x": 1}'}}]}
BAD = [
    ('{"messages": [', "not valid JSON"),
    ({"message": []}, r"no conversation \(it has message\); takes"),
    ({"messages": []}, "no messages; takes"),
    (7, "no object; takes"),
    ({"messages": ["hi"]}, "message 1 is not an object"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "message 1 has role 'bot'; takes system"),
    ({"conversations": [{"from": "bing", "value": "x"}]}, "message 1 is from 'bing'; takes human"),
    ({"messages": [USER, {"role": "assistant"}]}, "message 2 has no text"),
    ({"messages": [{"role": "user", "content": 5}]}, "message 1 has no text"),
    ({"messages": [{**USER, "content": [{"type": "image_url"}]}, ANSWER]}, "message 1 has a part of type 'image_url'"),
    ({"messages": [USER]}, "no message of the assistant"),
    ({"messages": [USER, {**ANSWER, "content": " \n"}]}, "message 2: the assistant says nothing"),
    ({"messages": [USER, USER, ANSWER]}, "messages 1 and 2 are both of the user"),
    ({"messages": [USER, ANSWER, ANSWER]}, "messages 2 and 3 are both of the assistant"),
    ({"messages": [USER, SYSTEM, ANSWER]}, "message 2 is of the system, which speaks before all others"),
    (
        {"messages": [USER, {"role": "tool", "content": "x"}, ANSWER]},
        "message 2 is of a tool, but message 1 calls none",
    ),
    ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "message 2 has weight 0.5; takes 0"),
    ({"messages": [USER, {**ANSWER, "train": "no"}]}, "message 2 has train 'no'; takes true or false"),
    ({"messages": [{**USER, "train": True}, ANSWER]}, "message 1 has train true, but only what the assistant says"),
    ({"messages": [USER, {**ANSWER, "weight": 0}]}, "every answer has weight 0"),
    ({"messages": [USER, {**ANSWER, "function_call": {"name": "f"}}]}, "message 2 has function_call"),
    ({"messages": [USER, {**CALL, "tool_calls": [{"function": {}}]}]}, "message 2: a call of a tool needs"),
    ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "descriptions of tools are not supported"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_mistakes_are_told_with_file_and_line(tmp_path, row, message):
    file = tmp_path / "chat.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    file.write_text(json.dumps({"messages": [USER, ANSWER]}) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=rf"^{file}:3: {message}"):
        list(read_conversations(file))


KEYS = ["messages", "conversations", "role", "content", "from", "value", "weight", "train", "tool_calls", "function"]
KEYS += [
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "system",
    "type",
    "text",
    "name",
    "arguments",
    "tools",
]
WORDS = ["user", "assistant", "human", "gpt", "tool", "text", "{}", "\ud800", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=14,
)
ROW = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5) | st.builds(
    lambda rows: {"messages": rows},
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(WORDS), "content": JSON},
            optional={k: JSON for k in KEYS if k not in ("role", "content")},
        ),
        max_size=3,
    ),
)


@pytest.fixture(scope="module")
def chatml(tokenizer):
    return with_chat(tokenizer, "chatml")


@settings(max_examples=80, deadline=None)
@given(ROW | JSON)
def test_whatever_a_row_holds_it_is_read_or_refused(chatml, value):
    try:
        found = scripts(conversation(value, "chat.jsonl:1"), chatml)
    except UserError:
        return
    assert all(any(row.learned) for row in encode(found, chatml))


def test_nested_without_end(tmp_path):
    for name, what in (("chat.jsonl", "not valid JSON"), ("chat.json", "lists in lists without end")):
        (tmp_path / name).write_text("[" * 200_000)
        with pytest.raises(UserError, match=f"{name}:1: {what}"):
            list(read_conversations(tmp_path / name))


def test_bad_rows_may_be_left_out(tmp_path):
    file, told = tmp_path / "chat.jsonl", []
    good = json.dumps({"messages": [USER, ANSWER]})
    bad = [row if isinstance(row, str) else json.dumps(row) for row, _ in BAD]
    file.write_text("\n".join([good, *bad, good]))
    assert [name for name, _ in read_conversations(file, told.append)] == ["chat.jsonl:1", f"chat.jsonl:{len(bad) + 2}"]
    assert len(told) == len(bad)


def test_tools_are_called_and_answer(tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": [USER, CALL, {"role": "tool", "content": "7"}, ANSWER]}))
    ((_, messages),) = read_conversations(file)
    assert messages[1]["tool_calls"][0]["function"] == {"name": "find", "arguments": {"x": 1}}  # as templates take it
    assert messages[1]["content"] == ""


def test_no_conversations(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list(read_conversations(tmp_path / "chat.jsonl"))
    with pytest.raises(UserError, match="is a folder"):
        list(read_conversations(tmp_path))
    for name in ("chat.jsonl", "chat.json"):
        (tmp_path / name).write_text("\n\n")
        with pytest.raises(UserError, match="is empty"):
            list(read_conversations(tmp_path / name))
