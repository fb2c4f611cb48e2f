"""The commands that plan and execute a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from bench import registry
from bench.cli_options import (
    AnchorPrompts,
    AssetFiles,
    AssetFolder,
    AutoBatchSize,
    Compile,
    Device,
    DType,
    Examine,
    SuiteName,
    err,
    examiner_names,
    out,
    show_leaderboard,
)
from bench.cli_progress import Bar, progress_bar
from bench.config import (
    DEFAULT_METHODS,
    WHOLE,
    BudgetName,
    EngineName,
    Images,
    Resume,
    RunConfig,
    Shard,
    Tuning,
    parse_sequence,
    parse_settings,
    parse_targets,
    parse_tuned,
    parse_variant,
    whole_path,
)
from bench.errors import BenchError, unknown
from bench.files import sha256_file
from bench.progress import duration
from bench.types import SCHEDULERS, content_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.attack_plan import AttackUnit
    from bench.engine.job import Crew
    from bench.suites.suite import Suite

LONG = 12 * 3600.0
"""Seconds from which on a run is only begun with --yes."""
STOPPED = 75
"""Exit status of a run that was stopped and can go on (`EX_TEMPFAIL`)."""
Methods = Annotated[
    str,
    typer.Option(
        help="Comma-separated; `list methods` names them, `esd:iterations=50` is one with a parameter changed, "
        "`path/to/file.py:MyMethod` one of your own. `none` always runs."
    ),
]
Concepts = Annotated[str | None, typer.Option(help="Names, `styles`, `objects`, `all`, or `a+b` for both at once. Default: the preset's.")]
PresetName = Annotated[str, typer.Option(help="How much of the suite: smoke, quick or full (`show SUITE`).")]
Seeds = Annotated[int | None, typer.Option(min=1, max=10_000, help="Pictures per prompt. Default: the preset's.")]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps. Default: the preset's.")]
Scheduler = Annotated[
    str | None, typer.Option(help="ddim, or to see what another gives: lms, dpm-solver++, euler, euler-ancestral. Default: the preset's.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="method.param=value, repeatable; `show METHOD` names the parameters.")]
EngineChoice = Annotated[EngineName, typer.Option("--engine", help="local: this machine; ray: a Ray cluster, or Ray on this machine.")]
Workers = Annotated[int | None, typer.Option(min=1, max=10_000, help="Processes. Default: one for each GPU, or one on a CPU.")]
Attacks = Annotated[
    str | None,
    typer.Option(help="Also attack what is erased, comma-separated: `list attacks` names them; `unlearndiffatk:gradient=published` is one "
                      "with a parameter changed, prompts-v1 the fixed set of the robustness column."),
]  # fmt: skip
AttackBudget = Annotated[
    BudgetName, typer.Option(help="Of attacks. quick: 5 prompts of each of the preset quick's concepts, at most 200 gradient steps and 10 "
                                  "judged pictures each; full: all prompts of all concepts, the published budgets.")
]  # fmt: skip
TuningRows = Annotated[
    Tuning,
    typer.Option(
        "--tuning",
        help="Rows of tuned methods: both (with and without tuning), tuned or untuned; shared: both, "
        "with what `tune --share` found, one setting per kind of concept.",
    ),
]


TunedFiles = Annotated[
    list[str] | None,
    typer.Option("--tuned", help="METHOD=FILE, repeatable: what `tune METHOD --out FILE` found; of a method in a file, the class's name."),
]


def _config(
    suite: str, methods: str, concepts: str | None, preset: str, seeds: int | None, steps: int | None, settings: list[str] | None,
    batch_size: int | None, scheduler: str | None, images: Images = "sample", tuning: Tuning = "both", sequential: str | None = None,
    examine: str | None = None, attacks: str | None = None, attack_budget: BudgetName = "quick",
    attack_prompts: Path | None = None, tuned: list[str] | None = None,
) -> RunConfig:  # fmt: skip
    found = registry.suite(suite)
    if preset not in found.presets:
        raise unknown("preset", preset, found.presets)
    names = tuple(whole_path(name) for name in map(str.strip, methods.split(",")) if name)
    bare = [parse_variant(name)[0] for name in names]
    for name in bare:
        registry.require(name)
    for sentence in registry.refused():
        err.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise unknown("scheduler", scheduler, SCHEDULERS)
    if not names:
        raise BenchError("--methods names no method: `python -m bench list methods` has them.")
    defaults = found.presets[preset]
    if sequential is not None and concepts is not None:
        raise BenchError("--sequential names the concepts itself: leave --concepts out.")
    order: tuple[str, ...] = ()
    if sequential is None:
        targets = parse_targets(",".join(defaults.concepts) if concepts is None else concepts, found)
    else:
        order, targets = parse_sequence(sequential, found)
    return RunConfig(
        suite=found.key, preset=preset, methods=names, settings=parse_settings(settings or (), [*map(registry.short_name, bare)]),
        tuned=parse_tuned(tuned or (), [*map(registry.short_name, bare)]), targets=tuple(map(str, targets)),
        seeds=seeds or defaults.seeds, steps=steps or defaults.steps, batch_size=batch_size, images=images, tuning=tuning,
        scheduler=scheduler or defaults.scheduler, sequential=order, examine=examiner_names(examine),
        attacks=_attack_names(attacks, attack_prompts, found), attack_budget=attack_budget,
    )  # fmt: skip


def _attack_names(text: str | None, prompts: Path | None, suite: Suite) -> tuple[str, ...]:
    """Attacks with what sets of them stand for. BenchError for unknown ones, and for prompts of concepts that the suite has not."""
    names = [own for name in filter(None, map(str.strip, (text or "").split(","))) for own in registry.ATTACK_SETS.get(name, (name,))]
    if text is not None and not names:
        raise BenchError("--attacks names no attack: `python -m bench list attacks` has them.")
    for name in names:
        bare = parse_variant(name)[0]
        registry.require_attack(bare)
        if bare == "replay":
            raise BenchError("replay is told its file by --attack-prompts FILE, such as a run's attack_prompts.csv.")
    if prompts is not None:
        from bench.prompts import read_prompts

        keys, known = set(read_prompts(prompts)), set(map(str, suite.concepts))
        for column, own in (("style", suite.styles), ("object", suite.objects)):
            for name in sorted({key[1 if column == "style" else 2] for key in keys} - {*own, ""}):
                raise unknown(f"{column} of {suite.key} in {prompts}", name, own)
        for target in sorted({key[0] for key in keys} - known):
            raise unknown(f"concept of {suite.key} in {prompts}", target, sorted(known))
        names.append(f"replay:file={prompts.absolute()}:digest={sha256_file(prompts)}")
    return tuple(dict.fromkeys(names))


def run(
    suite: SuiteName = "minicanvas", methods: Methods = DEFAULT_METHODS, concepts: Concepts = None, preset: PresetName = "quick",
    seeds: Seeds = None, steps: Steps = None, settings: Settings = None, device: Device = "auto", dtype: DType = "auto",
    compile_: Compile = "auto", batch_size: AutoBatchSize = None, scheduler: Scheduler = None, tuning: TuningRows = "both",
    tuned: TunedFiles = None,
    sharing: Annotated[bool, typer.Option(help="Walk the un-edited trajectory once for all rows that are like it until an edit acts. "
                                               "The result is the same, byte for byte.")] = True,
    images: Annotated[Images, typer.Option(help="Pictures to keep: all, a dozen per erasure, or none. Scores are always kept.")] = "sample",
    folder: Annotated[Path | None, typer.Option("--out", help="The run's folder. Default: results/runs/SUITE-PRESET.")] = None,
    resume: Annotated[Resume, typer.Option(help="In a folder that holds a run: sample what is missing; never touch it; always sample all "
                                                "again; only-cache makes the tables of what is there.")] = "missing",
    shard: Annotated[str, typer.Option(help="i/n: only the i-th of n shares, beside processes that do the others.")] = "1/1",
    engine: EngineChoice = "local", workers: Workers = None,
    ray_address: Annotated[str | None, typer.Option(help="host:port of a Ray cluster, or auto. Default: this machine alone.")] = None,
    assets: AssetFolder = None, files: AssetFiles = None, anchor_prompts: AnchorPrompts = None,
    sequential: Annotated[str | None, typer.Option(help="A,B,C: remove A, then B too, then C too, and see what comes back.")] = None,
    examine: Examine = None, attacks: Attacks = None, attack_budget: AttackBudget = "quick",
    attack_prompts: Annotated[Path | None, typer.Option(help="Also try the prompts of a file, such as a run's attack_prompts.csv.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Begin also what is expected to take longer than half a day.")] = False,
) -> None:  # fmt: skip
    """Remove each concept with each method, sample, score, and print the table. The same command again continues.

    In one folder methods may change from command to command: what is sampled is kept, the tables are the last command's.
    Ctrl-C, or SIGTERM, finishes and writes what is in flight and exits with status 75; nothing that is written is ever lost.

    Examples: `python -m bench run` · `python -m bench run --methods uce,esd --concepts neon,fish --seeds 3` ·
    `python -m bench run --methods uce --set uce.tokens=last`
    """
    config = _config(
        suite, methods, concepts, preset, seeds, steps, settings, batch_size, scheduler, images, tuning, sequential, examine, attacks,
        attack_budget, attack_prompts, tuned,
    )  # fmt: skip
    place = folder or Path("results") / "runs" / _run_name(config)
    from bench.engine.job import Job
    from bench.engine.stopping import Stopped, stopping
    from bench.runner import Engine, crew_of
    from bench.runner import run as execute

    _tell_absent(registry.suite(config.suite))
    _tell_attacked(config)
    job = Job(config, place, device, dtype, compile_, sharing, resume, Shard.parse(shard))
    try:
        with progress_bar() as progress, stopping() as stop:
            bar = Bar(progress)
            with crew_of(job, Engine(engine, workers, ray_address), bar, stop) as crew:
                n, what = crew.outline.numerics, f"{crew.outline.protocol}: {crew.outline.planned} pictures"
                err.print(f"{what}, {n['device']} {n['dtype']}, {n['slots']} slots a call", soft_wrap=True)
                _tell_time(crew, yes)
                ended = execute(crew, place, bar, stop)
    except Stopped:
        raise typer.Exit(STOPPED) from None
    if ended.leaderboard is not None:
        show_leaderboard(ended.leaderboard)
        if config.sequential:
            out.print((place / "sequential.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        err.print(f"Tables and picture: {place}", highlight=False, soft_wrap=True)
    broken = [failure for failure in ended.failed.values() if failure.traceback]
    for failure in broken:
        err.print(f"{failure.name} broke:\n{failure.traceback}", markup=False, highlight=False, soft_wrap=True)
    if ended.leaderboard is None:
        what = f"{ended.left} pictures are" if ended.left else "The table is"
        again = "the same command" if resume == "missing" else "the same command with --resume missing"
        others = job.shard != WHOLE and not stop()
        then = "they are for other shards, the last of which makes the tables" if others else f"{again} continues"
        err.print(f"{what} left: {then}.", highlight=False, soft_wrap=True)
    if ended.leaderboard is None and stop():
        raise typer.Exit(STOPPED)
    nothing = ended.leaderboard is not None and bool(ended.failed) and ended.leaderboard.lacks_outcomes
    if nothing:
        err.print("No method has an outcome: the footnotes say why.", highlight=False, soft_wrap=True)
    if broken or nothing or (ended.leaderboard is None and job.shard == WHOLE):
        raise typer.Exit(1)


def _tell_absent(suite: Suite) -> None:
    """Which columns will be empty for want of files; to fetch them later would sample everything again."""
    there = suite.networks()
    absent = [one.key for one in suite.distances if one.network not in there]
    if absent:
        command = f"python -m bench assets list --suite {suite.key}"
        what = f"Without {', '.join(absent)}: files are not here ({command}). Fetched later, all pictures are sampled again"
        err.print(what, highlight=False, soft_wrap=True)


def _tell_attacked(config: RunConfig) -> None:
    """Which concepts the budget leaves alone."""
    if not config.attacks:
        return
    from bench.attack_plan import attacked_targets

    suite = registry.suite(config.suite)
    every = parse_targets(",".join(config.targets), suite)
    some = attacked_targets(suite, every, config.attack_budget)
    if len(some) < len(every):
        what = f"Attacked are {', '.join(map(str, some))}, and not the {len(every) - len(some)} other concepts"
        err.print(f"{what}: --attack-budget full attacks all, --concepts names others.", highlight=False, soft_wrap=True)


def _tell_time(crew: Crew, yes: bool) -> None:
    """How long it will take, by UNet calls just timed. BenchError for a long run that nobody confirmed and that is not yet begun."""
    left, gathered = crew.outline.pictures - crew.outline.done, crew.outline.gathered
    seconds = crew.outline.seconds * (left / crew.size + gathered)
    if not left:
        return
    workers = f" on {crew.size} workers" if crew.size > 1 else ""
    what = f"{left} pictures" + (f" and {gathered} that latents are chosen from, unless they were before" if gathered else "")
    time = f"{crew.outline.seconds:.3g} s of UNet a picture, measured: at most about {duration(seconds)}{workers} for {what}"
    if seconds > LONG and not yes and not crew.outline.done:
        raise BenchError(f"{time}. Give --yes to begin, or a smaller --preset, --concepts, --seeds, or a --shard of it.")
    err.print(f"{time}; fits, judges and measuring what each method costs not counted", highlight=False, soft_wrap=True)


def _run_name(config: RunConfig) -> str:
    """The same command finds its own run again; other concepts, seeds or steps than the preset's get a folder of their own."""
    preset = registry.suite(config.suite).presets[config.preset]
    targets = tuple(map(str, parse_targets(",".join(preset.concepts), registry.suite(config.suite))))
    own = [config.targets, config.seeds, config.steps, config.batch_size, config.scheduler, *config.sequential]
    usual = own == [targets, preset.seeds, preset.steps, None, preset.scheduler]
    chosen = content_hash(own)[:6]
    return f"{Path(config.suite).stem}-{config.preset}" + ("" if usual else f"-{chosen}")


def plan(
    suite: SuiteName = "minicanvas", methods: Methods = DEFAULT_METHODS, concepts: Concepts = None, preset: PresetName = "quick",
    seeds: Seeds = None, steps: Steps = None, settings: Settings = None, scheduler: Scheduler = None, tuning: TuningRows = "both",
    tuned: TunedFiles = None,
    sequential: Annotated[str | None, typer.Option(help="As of `run`.")] = None, assets: AssetFolder = None, files: AssetFiles = None,
    anchor_prompts: AnchorPrompts = None, attacks: Attacks = None, attack_budget: AttackBudget = "quick",
) -> None:  # fmt: skip
    """Show what `run` with the same options would sample. Writes nothing."""
    config = _config(suite, methods, concepts, preset, seeds, steps, settings, None, scheduler, tuning=tuning, sequential=sequential,
                     attacks=attacks, attack_budget=attack_budget, tuned=tuned)  # fmt: skip
    with err.status("loading torch, the model and the judges"):
        from bench.session import prepare

        session = prepare(config, "cpu", "auto", sampling=False)
    table = Table("method", "erasures", "units", "pictures", title=session.protocol)
    units = session.plan.units
    for label in dict.fromkeys(unit.fit.spec.label for unit in units):
        own = [unit for unit in units if unit.fit.spec.label == label]
        table.add_row(label, str(len({unit.fit.id for unit in own})), str(len(own)), str(sum(len(unit.requests) for unit in own)))
    table.add_row("in all", "", f"{len(units)} in {len(session.plan.bundles)} bundles", str(session.plan.pictures))
    out.print(table)
    if session.attacks:
        out.print(_attack_table([unit for bundle in session.attacks for unit in bundle]))
    holes: dict[str, dict[str, None]] = {}
    for (_, target), reason in session.plan.unsupported.items():
        holes.setdefault(reason, {})[target] = None
    for reason, names in holes.items():
        out.print(f"{reason}: nothing for {', '.join(names)}")


def _attack_table(units: Sequence[AttackUnit]) -> Table:
    """What is attacked with what. Rows that agree on an erasure are one victim."""
    table = Table("attack", "victims", "goals", "at most as long as … pictures")
    for label in dict.fromkeys(unit.attack.label for unit in units):
        own = [unit for unit in units if unit.attack.label == label]
        goals, most = sum(len(unit.requests) for unit in own), sum(unit.pictures for unit in own)
        table.add_row(label, str(len({unit.fit.spec.label for unit in own})), str(goals), str(most))
    return table
