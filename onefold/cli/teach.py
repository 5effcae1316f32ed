"""Verbs for teaching small models by large ones."""

from typing import Annotated

import typer

from onefold.cli.common import Device, ServiceKeys, Settings, example, key_of, read_settings
from onefold.core.errors import UserError

app = typer.Typer(rich_markup_mode="rich")

TeacherName = Annotated[
    str, typer.Argument(metavar="TEACHER", help="A model that chats, or the address of an OpenAI-compatible service")
]


@app.command(
    epilog=example(
        "onefold teach model.gguf prompts=questions.jsonl out=taught.jsonl temperature=0.7",
        "onefold teach https://example.org/v1 prompts=questions.jsonl out=taught.jsonl model=large per_minute=60",
        "onefold teach model.gguf prompts=questions.txt out=taught.jsonl --system 'Think step by step.' --erase",
        "onefold align small.gguf chat=taught.jsonl",
    )
)
def teach(
    teacher: TeacherName,
    settings: Settings = None,
    system: Annotated[str | None, typer.Option(help="What the teacher is told about how to answer")] = None,
    erase: Annotated[bool, typer.Option("--erase", help="Save nothing of what the system said to the teacher")] = False,
    generic: Annotated[str | None, typer.Option(help="What is saved in its place")] = None,
    key: ServiceKeys = None,
    device: Device = "auto",
):
    """Let a model answer a file of prompts, and save conversations that a smaller one can learn from.

    [bold]prompts=[/bold] a text a line, or rows with prompt or messages; [bold]out=[/bold] a JSONL file, to which rows
    are added as they come: given again, the command goes on where it stopped. Other settings are those of sampling,
    and [bold]batch=[/bold] of a model, [bold]model= parallel= per_minute= timeout= attempts=[/bold] of a service.
    """
    from onefold.core.device import pick
    from onefold.infer.generation.sampling import Sampling
    from onefold.infer.teaching.teach import teach as run
    from onefold.infer.teaching.teacher import open_teacher

    given = read_settings(settings)
    if missing := [name for name in ("prompts", "out") if name not in given]:
        raise UserError(f"teach needs {missing[0]}=: onefold teach {teacher} prompts=FILE out=FILE.jsonl")
    files = given.pop("prompts"), given.pop("out")
    sampling = {name: given.pop(name) for name in list(given) if name in Sampling.model_fields}
    run(
        open_teacher(teacher, key_of(teacher, key), str(pick(device)), **given),
        *files,
        system,
        erase,
        generic,
        **sampling,
    )


@app.command(
    epilog=example(
        "onefold select taught.jsonl out=few.jsonl count=1000",
        "onefold select all.jsonl out=few.jsonl order=longest likeness=0.5 said_words='[50, 800]'",
    )
)
def select(
    chat: Annotated[str, typer.Argument(metavar="FILE", help="Conversations, in any shape that chat data has")],
    settings: Settings = None,
):
    """Keep few good and different conversations of many, and say why the others are left out.

    [bold]out=[/bold] where they go. Filters: [bold]asked_words=[/bold] and [bold]said_words=[/bold] (least and most),
    [bold]without=[/bold] phrases, [bold]likeness=[/bold] of questions (most ROUGE-L with any that is kept),
    [bold]count=[/bold] how many at most, [bold]order=[/bold] file or longest.
    """
    from onefold.data.text.chat.selection import SelectionConfig
    from onefold.data.text.chat.selection import select as run

    given = read_settings(settings)
    if "out" not in given:
        raise UserError(f"select needs out=: onefold select {chat} out=FILE.jsonl")
    out = given.pop("out")
    run(chat, out, SelectionConfig.from_dict(given))


@app.command(
    name="self-instruct",
    epilog=example(
        "onefold self-instruct model.gguf seeds=seeds.jsonl out=runs/tasks count=500",
        "onefold self-instruct https://example.org/v1 seeds=seeds.jsonl out=runs/tasks model=large per_minute=60",
        "onefold align small.gguf chat=runs/tasks/chat.jsonl",
    ),
)
def self_instruct(teacher: TeacherName, settings: Settings = None, key: ServiceKeys = None, device: Device = "auto"):
    """From a few tasks that people wrote to many by a model: instructions, instances, filters, conversations.

    [bold]seeds=[/bold] rows with instruction, input and output, and classification (true or false) where that is known;
    [bold]out=[/bold] a folder. Given the same again, it goes on where it stopped. Other settings: count, likeness,
    words, people, machine, temperature, top_p; batch of a model; model, parallel, per_minute, timeout and attempts of a
    service.
    """
    from onefold.core.device import pick
    from onefold.infer.teaching.self_instruct import SelfInstructConfig
    from onefold.infer.teaching.self_instruct import self_instruct as run
    from onefold.infer.teaching.teacher import open_teacher

    given = read_settings(settings)
    if "seeds" not in given:
        raise UserError(f"self-instruct needs seeds=: onefold self-instruct {teacher} seeds=FILE.jsonl")
    other = {"batch"} if "://" not in teacher else {"model", "parallel", "per_minute", "timeout", "attempts"}
    asking = {name: given.pop(name) for name in list(given) if name in other}
    run(SelfInstructConfig.from_dict(given), open_teacher(teacher, key_of(teacher, key), str(pick(device)), **asking))


@app.command(
    epilog=example(
        "onefold ghost model.gguf prompts=questions.txt instructions=rules.txt out=runs/ghost temperature=0.7",
        "onefold ghost https://example.org/v1 prompts=dialogues.jsonl instructions=rules.jsonl model=large combine=2",
        "onefold align small.gguf chat=runs/ghost/chat.jsonl data.learn=last",
    )
)
def ghost(teacher: TeacherName, settings: Settings = None, key: ServiceKeys = None, device: Device = "auto"):
    """Write dialogues in which a rule given at the beginning holds to the end (ghost attention).

    The rule is put before every user's message while the teacher answers, and kept once, to learn from.
    [bold]prompts=[/bold] dialogues (rows with messages), or single prompts, joined to dialogues of
    [bold]turns=[2,5][/bold]; [bold]instructions=[/bold] rules: a text a line, or rows with instruction, short and kind;
    [bold]out=[/bold] a folder: given again, the command goes on. [bold]answers=[/bold] all, or last: the others are
    those of the file; [bold]combine=[/bold] how many rules at most; [bold]shorten=[/bold] share kept in short;
    [bold]place=[/bold] system or user; seed. Others are those of sampling, [bold]batch=[/bold] of a model, and
    [bold]model= parallel= per_minute= timeout= attempts=[/bold] of a service.

    With place=user learn from it with [bold]data.too_long=skip[/bold]: a dialogue that is shortened to fit the context
    loses its first messages, and the rule with them.
    """
    from onefold.core.device import pick
    from onefold.infer.generation.sampling import Sampling
    from onefold.infer.teaching.ghost import GhostConfig
    from onefold.infer.teaching.ghost import ghost as run
    from onefold.infer.teaching.teacher import open_teacher

    given = read_settings(settings)
    if missing := [name for name in ("prompts", "instructions") if name not in given]:
        raise UserError(f"ghost needs {missing[0]}=: onefold ghost {teacher} prompts=FILE instructions=FILE")
    config = GhostConfig.from_dict({name: given.pop(name) for name in list(given) if name in GhostConfig.model_fields})
    sampling = {name: given.pop(name) for name in list(given) if name in Sampling.model_fields}
    run(config, open_teacher(teacher, key_of(teacher, key), str(pick(device)), **given), **sampling)


@app.command(
    epilog=example(
        "onefold feedback judge.gguf prompts=questions.jsonl models=runs/a,runs/b,other.gguf out=pairs.jsonl",
        "onefold feedback https://example.org/v1#large prompts=questions.jsonl models=a.gguf,b.gguf out=pairs.jsonl",
        "onefold feedback runs/reward prompts=questions.txt models=runs/sft,runs/sft,runs/sft against=worst",
        "onefold train zephyr stage=dpo start=runs/sft data=pairs.jsonl",
    )
)
def feedback(
    judge: Annotated[str, typer.Argument(metavar="JUDGE", help="A model that chats, a service, or a reward model")],
    settings: Settings = None,
    key: ServiceKeys = None,
    device: Device = "auto",
):
    """Let models answer prompts and a judge rate the answers, and save preferences that a model can learn from.

    [bold]prompts=[/bold] a text a line, or rows with prompt or messages; [bold]models=[/bold] who answers: paths and
    addresses with commas between them, those of services as [bold]URL#MODEL[/bold]; one that is named twice answers
    twice. [bold]out=[/bold] a JSONL file of the best answer of each prompt and a worse one. All that is said is kept
    beside it: given again, the command goes on where it stopped. Other settings: [bold]against=[/bold] random or worst,
    [bold]answers=[/bold] how many of the models answer each prompt, [bold]aspects=[/bold] what is rated,
    [bold]template=[/bold] what the judge reads, [bold]judge_max_new_tokens=[/bold] how much it may say; temperature,
    top_p, max_new_tokens, seed; batch of models; parallel, per_minute, timeout and attempts of services.
    """
    from onefold.core.device import pick
    from onefold.infer.teaching.endpoint import keys_of
    from onefold.infer.teaching.feedback import FeedbackConfig
    from onefold.infer.teaching.feedback import feedback as run
    from onefold.infer.teaching.judges import open_judge
    from onefold.infer.teaching.teacher import LazyTeacher, open_teacher

    given = read_settings(settings)
    if missing := [name for name in ("prompts", "models") if name not in given]:
        raise UserError(
            f"feedback needs {missing[0]}=: onefold feedback {judge} prompts=FILE models=A,B out=FILE.jsonl"
        )
    models = given.pop("models")
    names = list(filter(None, map(str.strip, models if isinstance(models, list) else str(models).split(","))))
    keys = keys_of([name for name in (judge, *names) if "://" in name], key or ())
    asking = {name: given.pop(name) for name in ("parallel", "per_minute", "timeout", "attempts") if name in given}
    if asking and not keys:
        raise UserError(f"{next(iter(asking))} is a setting of services, and none is asked")
    batch, where = given.pop("batch", 16), str(pick(device))
    told = {name: given.pop(name) for name in ("aspects", "template") if name in given}
    if (tokens := given.pop("judge_max_new_tokens", None)) is not None:
        told["max_new_tokens"] = tokens
    config = FeedbackConfig.from_dict(given)
    teachers = {
        name: open_teacher(name, keys[name], **asking) if "://" in name else LazyTeacher(name, where, batch)
        for name in names
    }
    judging = asking if "://" in judge else {}
    run(
        config,
        open_judge(judge, **told, key=keys.get(judge), device=where, batch=batch, **judging),
        [teachers[name] for name in names],
    )
