"""`onefold chat`: a conversation at a terminal, and a filter in a pipe."""

import io
import sys

import pytest

from onefold.core.errors import UserError
from onefold.serve import terminal
from onefold.serve.terminal import Leave, Session, chat, finished


def last_question(text: str) -> str:
    return text.split("<|user|>")[-1].split("<|end|>")[0]


@pytest.fixture
def piped(monkeypatch, capsys, make_model):
    """`piped(lines, …)` → what a pipe gets on stdout, and stderr."""

    def run(lines: str, system: str | None = None, model=None, **options):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        chat(model or make_model(**options), system=system)
        return capsys.readouterr()

    return run


@pytest.fixture
def typed(monkeypatch, capsys):
    """`typed(model, lines, …)` → the screen after a person has typed them. KeyboardInterrupt is Ctrl-C."""

    def run(model, lines, **options):
        coming = iter(lines)

        def read(prompt=""):
            line = next(coming, EOFError)
            if not isinstance(line, str):
                raise line
            return line

        terminal_in = io.StringIO()
        terminal_in.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", terminal_in)
        monkeypatch.setattr("builtins.input", read)
        chat(model, **options)
        return capsys.readouterr().out

    return run


def test_a_pipe_gets_one_line_an_answer(piped):
    out, err = piped("one\n\ntwo\r\n", script=lambda text: f"You said\n\n{last_question(text)}.\n")
    assert out.splitlines() == ["You said\\n\\none.", "You said\\n\\ntwo."]
    assert err == ""


def test_a_pipe_is_one_conversation_with_commands(piped):
    out, err = piped("a\nb\n/reset\nc\n/quit\nd\n", script=lambda text: str(text.count("<|user|>")))
    assert out.splitlines() == ["1", "2", "1"]
    assert err == "forgotten\n"


def test_a_mistake_in_a_pipe_ends_it(piped):
    with pytest.raises(UserError, match="no /qiut; /help"):
        piped("/qiut\n")


def test_the_system_prompt_is_read_and_can_be_changed(make_model):
    model = make_model(script="ok")
    session = Session(model, system="Be brief.")
    list(session.answer("hi"))
    session.command("/system Be long.")
    list(session.answer("again"))
    session.command("/system")
    list(session.answer("third"))
    first, second, third = model.seen.prompts
    assert "<|system|>Be brief.<|end|>" in first
    assert "<|system|>Be long.<|end|>" in second
    assert "Be brief." not in second
    assert "<|system|>" not in third.split("<|user|>")[0]


def test_a_long_conversation_forgets_its_beginning_not_its_end(make_model):
    model = make_model(script="ok", context=64)
    session = Session(model, system="S.", sampling={"max_new_tokens": 8})
    for n in range(20):
        assert "".join(session.answer(f"message number {n}")) == "ok"
    last = model.seen.prompts[-1]
    assert "<|system|>S.<|end|>" in last
    assert "number 19" in last
    assert "number 0<" not in last
    assert len(session.messages) == 40  # all of it can still be saved


def test_a_message_that_alone_is_too_long_is_a_clear_line_and_forgotten(make_model):
    session = Session(make_model(context=32))
    with pytest.raises(UserError, match="context is 32"):
        list(session.answer("word " * 100))
    assert session.messages == []
    assert "".join(session.answer("hi")) == "Paris."


def test_save_writes_what_training_reads(make_model, tmp_path):
    from onefold.data.text.chat.files import read_conversations

    session = Session(make_model(), system="Be brief.")
    list(session.answer("Capital of France?"))
    path = tmp_path / "talk.jsonl"
    assert str(path) in session.command(f"/save {path}")
    ((_, messages),) = read_conversations(path)
    assert [(m["role"], m["content"]) for m in messages] == [
        ("system", "Be brief."),
        ("user", "Capital of France?"),
        ("assistant", "Paris."),
    ]
    with pytest.raises(UserError, match="exists"):
        session.command(f"/save {path}")


def test_commands(make_model):
    session = Session(make_model())
    assert "/reset" in session.command("/help")
    with pytest.raises(UserError, match="nothing to save"):
        session.command("/save")
    for leave in ("/quit", "/exit", "/q"):
        with pytest.raises(Leave):
            session.command(leave)


def test_an_unknown_setting_is_told_before_the_first_question(make_model):
    with pytest.raises(UserError, match="did you mean temperature"):
        chat(make_model(), temprature=0.5)


def test_a_person_sees_answers_and_stays_after_a_mistake(make_model, typed):
    screen = typed(make_model(), ["hi", "/nonsense", KeyboardInterrupt, "", "again", EOFError, "never"], plain=True)
    assert screen.count("Paris.") == 2
    assert "there is no /nonsense" in screen
    assert "/quit or Ctrl-D" in screen
    assert "tokens" in screen


def test_ctrl_c_stops_the_answer_and_not_the_program(make_model, typed):
    model = make_model(script="one two three four five six seven eight nine ten")
    model.seen.interrupt_at = 5
    screen = typed(model, ["count", "again"], plain=True)
    assert "stopped" in screen
    assert "nine ten" in screen  # the second answer, whole
    assert "count<|end|><|assistant|>on" in model.seen.prompts[1]  # what had been said stays said


def test_lines_that_end_in_a_backslash_go_on(make_model, typed):
    model = make_model()
    typed(model, ["def f():\\", "    pass"], plain=True)
    assert "<|user|>def f():\n    pass<|end|>" in model.seen.prompts[0]


def test_a_base_model_continues_and_goes_on(make_model, typed, piped):
    model = make_model(chat=False, script=lambda text: " more")
    screen = typed(model, ["Once", "", "/system x"], plain=True)
    assert "no chat template" in screen
    assert model.seen.prompts[1].endswith("Once more")
    assert "takes no system prompt" in screen
    out, _ = piped("Once\n", chat=False, script=" upon\na time")
    assert out == "upon\\na time\n"


def test_markdown_comes_out_whole(make_model, typed, monkeypatch):
    said = "# Title\n\nSome **bold** text.\n\n```python\nprint(1)\n\nprint(2)\n```\n\n- a\n- b"
    shown = []
    monkeypatch.setattr(terminal, "Markdown", lambda source: shown.append(source) or source)
    monkeypatch.setattr(terminal, "Tail", lambda source: "")
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    typed(make_model(script=said), ["write"])
    assert "".join(shown) == said
    assert "```python\nprint(1)\n\nprint(2)\n```\n\n" in shown  # a fence is never cut


@pytest.mark.parametrize(
    ("source", "done"),
    [
        ("one", ""),
        ("one\n", ""),
        ("one\n\n", ""),
        ("one\n\nt", "one\n\n"),
        ("one\n\n  still a list", ""),
        ("```\na\n\nb", ""),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("~~~\n```\n\n~~~\n\nc", "~~~\n```\n\n~~~\n\n"),
        ("", ""),
    ],
)
def test_which_markdown_is_finished(source, done):
    assert source[: finished(source)] == done
