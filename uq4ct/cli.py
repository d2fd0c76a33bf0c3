"""The command line: ``uq4ct VERB``. Heavy libraries are imported by the verb that needs them, so help answers at once.

Standard output carries results, standard error progress and messages. Exit codes: 0 done; 2 the user's mistake, nothing
written; 1 a fault of ours or of the machine; 130 / 143 interrupted, to be continued with --resume.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from uq4ct.errors import Note, UserError, did_you_mean

app = typer.Typer(
    name="uq4ct",
    help="Fine-tune large language models so that their confidence can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_USUAL_FORMAT = warnings.formatwarning

# typer carries a click of its own in some versions and imports it in others: find the base class of its errors.
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

# Flags that take several values after one name: `--data a b` is read as `--data a --data b`.
SEVERAL = {"evaluate": ("--data",), "train": ("--set",), "validate": ("--set",), "compare": ("--eval-data", "--set")}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
DataRoot = Annotated[
    str | None,
    typer.Option(
        "--data-root",
        metavar="DIR|hub",
        help="Where named tasks are read: the hub, or a folder DIR/<task>/<split>.jsonl.",
    ),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Questions per forward pass.")]
Base = Annotated[str | None, typer.Option("--base", help="New place of the run's base model, if it moved.")]
Model = Annotated[str | None, typer.Option("--model", help="Base model: tiny, a folder, or a hub id.")]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="FILE|TASK", help="Questions to train on: jsonl, csv, parquet, task or hub id."),
]
MethodName = Annotated[str | None, typer.Option("--method", help="See `uq4ct ls methods`; default uq4ct+familiarity.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run.")]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, help="Stop after so many optimizer steps.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of initialisation, data order and dropout.")]
Preset = Annotated[
    str, typer.Option("--preset", metavar="product|paper|bayesian-lora|encoder", help="Starting point of all options.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; `uq4ct init` writes a commented one.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V ...", help="Any option, e.g. train.num_train_epochs=3.")
]
Engine = Annotated[
    str, typer.Option("--engine", metavar="local|ray", help="Processes on this machine, or a Ray cluster.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Cells at a time. Default: one per GPU, else per two cores.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the cells, time and disk; write nothing.")]
ColumnsOf = Annotated[
    list[str] | None,
    typer.Option(
        "--columns", metavar="FIELD=COLUMN,...", help="Where a file has what, e.g. label=gold,probabilities=p_*."
    ),
]
Likelihood = Annotated[
    str,
    typer.Option(
        "--likelihood",
        metavar="acc|acc_norm|acc_bytes",
        help="lm-eval's samples: softmax of summed log-likelihoods, or of those by length in characters or bytes.",
    ),
]
AbstainBelow = Annotated[
    float | None,
    typer.Option(
        "--abstain-below",
        min=0,
        max=1,
        help="Abstain below this confidence. A rule once given stays with the run; 0 keeps every answer again.",
    ),
]
TargetAccuracy = Annotated[
    float | None,
    typer.Option(
        "--target-accuracy",
        help="Abstain so that kept answers are this accurate (95 % confidence). This rule, too, stays with the run.",
    ),
]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and write them to a file.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for runs and report.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
) -> None:
    """Fine-tune the bundled small model with LoRA, MixLoRA and UQ4CT, compare them, and write a report."""
    from uq4ct import demo as bundled

    bundled.run(output, seed=seed, progress=_bar)


@app.command()
def init(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("run.yaml"),
    task: Annotated[str, typer.Option("--task", help="Task or file to train on.")] = "tiny",
    model: Annotated[str, typer.Option("--model", help="Base model.")] = "tiny",
    method: Annotated[str | None, typer.Option("--method", help="Default: the recommended one.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a configuration instead.")] = False,
) -> None:
    """Write a commented configuration."""
    from uq4ct import config, template

    if schema:
        print(json.dumps(config.json_schema(), indent=2))
        return
    if output.exists():
        raise UserError(f"{output}: exists already; name another file with --output")
    if not output.parent.is_dir():
        raise UserError(f"{output}: the folder {output.parent} does not exist")
    name = method or config.RECOMMENDED
    text = template.commented_config(task=task, model=model, method=name, folder=f"runs/{Path(task).stem}-{name}")
    output.write_text(text, encoding="utf-8")
    _say(f"wrote {output}\nnext: uq4ct validate --config {output}")


@app.command()
def validate(
    model: Model = None,
    data: Data = None,
    method: MethodName = None,
    output: Output = None,
    max_steps: MaxSteps = None,
    seed: Seed = None,
    preset: Preset = "product",
    config: ConfigFile = None,
    settings: Settings = None,
    data_root: DataRoot = None,
) -> None:
    """Check config, data, base model, answer tokens, prompt, memory and steps; nothing is trained."""
    from uq4ct import preflight

    preflight.run(
        lambda: _config(model, data, method, output, max_steps, seed, preset, config, settings, data_root), print
    )


@app.command()
def train(
    model: Model = None,
    data: Data = None,
    method: MethodName = None,
    output: Output = None,
    max_steps: MaxSteps = None,
    seed: Seed = None,
    preset: Preset = "product",
    config: ConfigFile = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run from its last good checkpoint.")
    ] = False,
    data_root: DataRoot = None,
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Fine-tune one model with one method on one task with one seed."""
    from uq4ct import fitting

    resolved = _config(model, data, method, output, max_steps, seed, preset, config, settings, data_root, skip_bad_rows)
    run = fitting.train(resolved, resume=resume)
    if fitting.is_main_process():
        _say(f"next: uq4ct evaluate {run.folder} --data ...   uq4ct ask {run.folder}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="FILE|TASK ...", help="Questions to score: file, TASK[:SPLIT], hub id."),
    ],
    split: Annotated[
        str | None, typer.Option("--split", help="Default: the labelled test split, else validation.")
    ] = None,
    batch_size: BatchSize = None,
    as_json: Json = False,
    data_root: DataRoot = None,
    base: Base = None,
    abstain_below: AbstainBelow = None,
    target_accuracy: TargetAccuracy = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep evaluations that are complete for this run and data.")
    ] = False,
) -> None:
    """Score a run on one or more tasks: accuracy and calibration with intervals."""
    from uq4ct import evaluating
    from uq4ct.runs import Run

    opened = Run.open(run)
    results = evaluating.evaluate(
        opened,
        data,
        split=split,
        root=data_root,
        batch_size=batch_size,
        base=base,
        resume=resume,
        rule=_rule(opened, abstain_below, target_accuracy),
        progress=_bar,
    )
    if as_json:
        print(json.dumps({"run": str(run), "results": results}, ensure_ascii=False, allow_nan=False))
    else:
        from uq4ct.report import kept_line, table

        print(table(results))
        if opened.rule:
            print("\n".join(map(kept_line, results)))
        _say(f"wrote {run}/evaluations/; next: uq4ct report {run} -o report.html")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Questions: jsonl, csv or parquet, labelled or not.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Prediction rows, one JSON object a line.")],
    batch_size: BatchSize = None,
    abstain_below: AbstainBelow = None,
    target_accuracy: TargetAccuracy = None,
    base: Base = None,
) -> None:
    """Answer a file of questions: choice, probabilities, confidence, FEU, abstain flag. Continues if interrupted."""
    from uq4ct import evaluating
    from uq4ct.runs import Run

    opened = Run.open(run)
    rule = _rule(opened, abstain_below, target_accuracy)
    with _bar_of("predict") as progress:
        count = evaluating.predict(
            opened, source, output, batch_size=batch_size, rule=rule, base=base, progress=progress
        )
    _say(f"wrote {count:,} predictions to {output}")


@app.command()
def ask(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    question: Annotated[str | None, typer.Option("--question", "-q", help="Asked for when not given.")] = None,
    choices: Annotated[
        list[str] | None, typer.Option("--choice", "-c", help="One flag per choice; asked for when not given.")
    ] = None,
    context: Annotated[str, typer.Option("--context", help="A passage shown before the question.")] = "",
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Ask one question and see the probability of each choice."""
    from uq4ct import data
    from uq4ct.answering import UQModel
    from uq4ct.runs import Run

    if not choices:
        choices = list(Run.open(run).facts["base"].get("classes", ()))  # a classifier's are known
    question = question or typer.prompt("Question", err=True)
    while not choices:
        line = typer.prompt("Choices, separated by |", err=True)
        choices = [part.strip() for part in line.split("|") if part.strip()]
    asked = data.one_question(question, choices, context)  # what is wrong with it shows before a model is loaded
    choices = list(asked.choices)
    if len(set(choices)) < len(choices):
        raise UserError(f"--choice: expected texts that differ, got {choices}")
    answer = UQModel.load(run, base=base).predict(asked.question, choices, asked.context)
    if as_json:
        print(json.dumps(answer._asdict(), ensure_ascii=False))
        return
    width = max(len(choice) for choice in choices)
    for (label, probability), choice in zip(answer.probabilities.items(), choices, strict=True):
        mark = ">" if label == answer.label else " "
        print(f"{mark} {label}  {choice:<{width}}  {'█' * round(40 * probability):<40} {probability:6.1%}")
    feu = "" if answer.feu is None else f"   FEU {answer.feu:.3f} (large means certain)"
    abstained = "   ABSTAINED: below the run's threshold" if answer.abstained else ""
    print(f"confidence {answer.confidence:.1%}{feu}{abstained}")


@app.command()
def compare(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the comparison.")],
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B|all",
            help="E.g. lora,uq4ct[top_k=3;rank=8],mixlora+vector. Without it the folder's tables are made anew.",
        ),
    ] = None,
    model: Model = None,
    data: Data = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option("--eval-data", metavar="FILE|TASK ...", help="Default: the training task's evaluation split."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="1,2,...", help="Default: five, or as in the paper three."),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol", metavar="sound|paper", help="Test split and calibration, or as the paper: validation, none."
        ),
    ] = "sound",
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="METHOD", help="Compared with the others. Default: lora.")
    ] = None,
    no_temperature: Annotated[
        bool, typer.Option("--no-temperature", help="No temperature-scaled second row of every method.")
    ] = False,
    max_steps: MaxSteps = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="product|paper|bayesian-lora|encoder", help="Default: the protocol's."),
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    data_root: DataRoot = None,
    engine: Engine = "local",
    workers: Workers = None,
    gpus_per_cell: Annotated[
        float | None, typer.Option("--gpus-per-cell", min=0, help="GPUs of a Ray task. Default: 1 where there is one.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compare methods over seeds: finished cells are kept, the same command continues an interrupted comparison."""
    from uq4ct import campaign, comparing, concluding, protocols

    if methods is None:
        given = [flag for flag in _flags_of(context) if flag not in ("--output", "--baseline", "--json")]
        _refuse_without_methods(output, given)
        _show_comparison(concluding.reread(output, baseline), output, as_json)
        return
    held = protocols.protocol(protocol)
    layers = _layers(model, data, None, None, max_steps, None, preset or held.preset, config, settings, data_root)
    layers.insert(1, held.layer)  # above the preset, below what the user says
    made = comparing.plan(
        methods,
        eval_data or [],
        held.seeds if seeds is None else seeds,
        output=output,
        held=held,
        layers=layers,
        baseline=baseline,
        temperature=not no_temperature,
        engine=engine,
    )
    if dry_run:
        outcomes = [campaign.state(cell) for cell in made.cells]
        cells = comparing.describe(made, outcomes)
        print(json.dumps({"cells": cells}) if as_json else comparing.plan_table(cells, made, outcomes))
        return
    outcomes, found = comparing.run(
        made,
        output,
        held,
        engine=engine,
        workers=workers,
        gpus_per_cell=gpus_per_cell,
        baseline=baseline,
        preset=preset,
        say=_say,
    )
    _show_comparison(found, output, as_json)
    if problems := comparing.problems_of(outcomes):
        for problem in problems:
            _say(f"error: {problem}")
        raise SystemExit(1)


def _flags_of(context: typer.Context) -> list[str]:
    """Return the flags that the command line gives, by their long names, whatever their values."""
    sources = {flag.opts[0]: context.get_parameter_source(str(flag.name)) for flag in context.command.params}
    return [flag for flag, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _refuse_without_methods(output: Path, flags: Sequence[str]) -> None:
    """Refuse flags that plan a comparison where no methods are named."""
    if flags:
        raise UserError(
            f"--methods: name the methods to compare, as in lora,uq4ct; without it the tables of {output} are made "
            f"anew from its files, and {', '.join(flags)} would change nothing"
        )


def _show_comparison(found: dict[str, Any], output: Path, as_json: bool) -> None:
    """Print what a comparison found, as one JSON object or for people."""
    from uq4ct import concluding

    if as_json:
        told = {key: found[key] for key in concluding.TOLD}
        print(json.dumps(told, ensure_ascii=False, allow_nan=False))
    else:
        print(concluding.text_of(found))
        names = "results.json, table.md, .csv, .tex, differences.md, .csv"
        _say(f"wrote {output}/{names}; next: uq4ct report {output}")


@app.command()
def metrics(
    source: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="Anyone's predictions, or a results folder of lm-eval.")
    ],
    bins: Annotated[int, typer.Option("--bins", min=1, help="Equal-width bins of the calibration error.")] = 15,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Resamples behind every interval and null band.")
    ] = 1000,
    columns: ColumnsOf = None,
    likelihood: Likelihood = "acc",
    by_group: Annotated[bool, typer.Option("--by-group", help="Part each task by the rows' group, too.")] = False,
    as_json: Json = False,
) -> None:
    """Measure predictions: accuracy, calibration, selective prediction, with intervals; by task, method and seed."""
    from uq4ct import predictions
    from uq4ct.metrics import summarize
    from uq4ct.report import table

    results = []
    for (task, method, seed), rows in predictions.evaluations(_reader(columns, likelihood)(source), by_group).items():
        names = {"task": task or source.stem, "method": method, "seed": seed}
        measured = summarize(rows, bins=bins, resamples=resamples)
        results.append({key: name for key, name in names.items() if name is not None} | measured)
    if as_json:
        shown = results[0] if len(results) == 1 else {"results": results}
        print(json.dumps(shown, ensure_ascii=False, allow_nan=False))
    else:
        print(table(results))


@app.command()
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|COMPARISON|PREDICTIONS ...", help="Run folders, folders of `uq4ct compare`, prediction files."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The html file to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Also write each figure (svg pdf png csv json) and the table."),
    ] = None,
    columns: ColumnsOf = None,
    likelihood: Likelihood = "acc",
) -> None:
    """Write one self-contained html report from runs, a comparison or prediction files; no model is loaded."""
    from uq4ct.report import build_report

    build_report(sources, output, figures=figures, say=_say, read=_reader(columns, likelihood))
    _say(f"wrote {output}" + ("" if figures is None else f" and the figures in {figures}/"))


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(metavar="table1|...|table6", help="Which of the paper's tables.")],
    model: Model = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the table and its runs.")] = None,
    data_root: DataRoot = None,
    preset: Annotated[
        str, typer.Option("--preset", metavar="paper|bayesian-lora", help="The paper's settings, or Laplace-LoRA's.")
    ] = "paper",
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="1,2,3", help="Default: 1,2,3; with --budget smoke 1,2.")
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", metavar="full|smoke", help="smoke: a few steps, to see that everything runs.")
    ] = "full",
    engine: Engine = "local",
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run one of the paper's tables with any base model and print ours beside the paper's numbers."""
    from uq4ct import campaign
    from uq4ct.experiments import request as requests
    from uq4ct.experiments import running

    request = requests.prepare(
        table,
        model=model,
        output=output,
        root=data_root or "hub",
        preset=preset,
        seeds=seeds,
        budget=budget,
        engine=engine,
    )
    if dry_run:
        outcomes = [campaign.state(cell) for cell in request.plan.cells]
        cells = {"cells": running.describe(request, outcomes)}
        print(json.dumps(cells, ensure_ascii=False) if as_json else running.listing(request, outcomes))
        return
    page, record, problems = running.run(request, engine=engine, workers=workers, say=_say)
    print(json.dumps(record, ensure_ascii=False, allow_nan=False) if as_json else page)
    _say(f"wrote {output}/{table}.md, .csv, .tex and .json; the runs are in {output}/cells")
    if problems:
        for problem in problems:
            _say(f"error: {problem}")
        raise SystemExit(1)


@app.command(name="ls")
def list_(
    what: Annotated[str, typer.Argument(metavar="tasks|methods|metrics|runs")],
    folder: Annotated[Path, typer.Argument(help="Where to look for runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List tasks, methods, metrics or runs."""
    from uq4ct import catalogue

    if what not in catalogue.KINDS:
        raise UserError(
            f"ls: '{what}' is not one of {', '.join(catalogue.KINDS)}.{did_you_mean(what, list(catalogue.KINDS))}"
        )
    rows = catalogue.KINDS[what](folder)
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    width = max((len(str(row["name"])) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['summary']}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `uq4ct ... | head` ends quietly
    sys.exit(invoke(list(sys.argv[1:] if arguments is None else arguments)))


def invoke(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    _quiet()
    try:
        app(args=_spread(arguments), prog_name="uq4ct", standalone_mode=False)
    except UserError as error:
        for problem in error.problems:
            _say(f"error: {problem}")
        return 1 if type(error).__name__ == "Diverged" else 2  # its module is heavy, and loaded only by training
    except _USAGE_ERROR as error:
        error.show(sys.stderr)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        _say("interrupted; the same command continues (train: add --resume)")
        return 130
    except SystemExit as error:  # training was interrupted, after it saved a checkpoint
        if checkpoint := getattr(error, "checkpoint", None):
            again = " with --resume" if arguments[:1] == ["train"] else ""
            _say(f"interrupted; {checkpoint} is saved, the same command{again} continues")
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        return 0
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        _say(f"error: {error.filename}: {error.strerror}; nothing can be written or read there")
        return 2
    except Exception:
        import traceback

        traceback.print_exc()
        _say("error: this is a fault of uq4ct or of the machine; please report it with the lines above")
        return 1
    return 0


def _quiet() -> None:
    """Keep libraries from talking over our own lines: progress bars of loading weights, notes to their developers."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.formatwarning = _formatted


def _formatted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if issubclass(category, Note):
        return f"note: {message}\n"
    return _USUAL_FORMAT(message, category, filename, lineno, line)


def _spread(arguments: list[str]) -> list[str]:
    """Repeat the name of a flag before each of its values.

    >>> _spread(["evaluate", "run", "--data", "a", "b", "--json"])
    ['evaluate', 'run', '--data', 'a', '--data', 'b', '--json']
    """
    several = SEVERAL.get(arguments[0], ()) if arguments else ()
    spread: list[str] = []
    flag = ""
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1:
            flag = argument if argument in several else ""
            fresh = True
        elif flag and not fresh:
            spread.append(flag)
        else:
            fresh = False
        spread.append(argument)
    return spread


def _config(
    model: str | None,
    data: str | None,
    method: str | None,
    output: Path | None,
    max_steps: int | None,
    seed: int | None,
    preset: str,
    config: Path | None,
    settings: list[str] | None,
    data_root: str | None,
    skip_bad_rows: bool = False,
) -> Any:
    """Merge preset, file and flags, in this order, the later ones winning."""
    from uq4ct import config as configuration

    return configuration.resolve(
        _layers(model, data, method, output, max_steps, seed, preset, config, settings, data_root, skip_bad_rows)
    )


def _layers(
    model: str | None,
    data: str | None,
    method: str | None,
    output: Path | None,
    max_steps: int | None,
    seed: int | None,
    preset: str,
    config: Path | None,
    settings: list[str] | None,
    data_root: str | None,
    skip_bad_rows: bool = False,
) -> list[Any]:
    """Return preset, file and flags as layers of options, in this order."""
    from uq4ct import config as configuration

    layers = [] if config is None else [configuration.read_yaml(config)]
    flags = {
        "--model": ("model", "name", model),
        "--data": ("data", "source", data),
        "--data-root": ("data", "root", data_root),
        "--skip-bad-rows": ("data", "skip_bad_rows", skip_bad_rows or None),
        "--method": ("method", "name", method),
        "--output": ("output", "folder", None if output is None else str(output)),
        "--seed": ("output", "seed", seed),
        "--max-steps": ("train", "max_steps", max_steps),
    }
    layers += [
        configuration.Layer.of({section: {name: value}}, flag)
        for flag, (section, name, value) in flags.items()
        if value is not None
    ]
    layers.append(configuration.read_settings(settings or []))
    return [*configuration.preset_layers(preset, configuration.source_of(layers)), *layers]


def _rule(run: Any, abstain_below: float | None, target_accuracy: float | None) -> Any:
    """Return the abstain rule that flags ask for, or None; say which one is fitted, or saved with the run."""
    from uq4ct import evaluating
    from uq4ct.posthoc.abstain import AbstainRule

    if abstain_below is not None and target_accuracy is not None:
        raise UserError("give --abstain-below or --target-accuracy, not both")
    if abstain_below is not None:
        return AbstainRule(threshold=abstain_below)
    if target_accuracy is None:
        if run.rule:
            _say(f"the abstain rule saved with the run applies: {run.rule.describe()}")
        return None
    rule = evaluating.target_accuracy_rule(run, target_accuracy)
    _say(f"abstain below confidence {rule.threshold:.4f}: {rule.describe()}")
    return rule


def _reader(columns: list[str] | None, likelihood: str) -> Callable[[Path], list[Any]]:
    """Return what reads a prediction file as flags say, and tells how it did."""
    from uq4ct import predictions

    named = predictions.Columns.parse(columns or [])

    def read(path: Path) -> list[Any]:
        reading = predictions.read_any(path, named, likelihood)
        _say(reading.how)
        return reading.rows

    return read


@contextmanager
def _bar_of(name: str) -> Iterator[Callable[[int, int], None]]:
    yield _bar(name, 0)


def _bar(name: str, total: int) -> Callable[[int, int], None]:
    """Return a progress callback that shows done, total and ETA on standard error."""
    from tqdm import tqdm

    bar = tqdm(desc=name, unit="question", total=total or None, file=sys.stderr, mininterval=0.5, disable=None)

    def advance(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return advance


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
