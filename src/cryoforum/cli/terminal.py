"""What the command line shows: messages, tables, the one line of an error."""

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cryoforum.errors import InputError, require
from cryoforum.runtime.memory import is_out_of_memory
from cryoforum.runtime.progress import compact_angle, in_degrees, progress_on
from cryoforum.runtime.reporter import Reporter
from cryoforum.storage.files import reason_of

if TYPE_CHECKING:
    from cryoforum.commands.check.check import Check
    from cryoforum.commands.check.findings import Alternative
    from cryoforum.commands.demo import DemoResult
    from cryoforum.commands.filter import FilterResult
    from cryoforum.commands.pose_files import PoseSummary
    from cryoforum.commands.refine import RefineSummary
    from cryoforum.curation.calibration import CalibrationCard
    from cryoforum.dataset.pose_errors import ErrorSummary

_MEMORY = (
    "not enough memory for this; end other programs, lower --batch-size, take fewer particles at a time, or "
    "look for a box or a count that is larger than it was meant to be"
)
WIDTH_OF_FILES = 120  # columns where a file or a pipe takes what is shown
INTERRUPTED = "interrupted; a training goes on with --resume, a prediction when run again"
_tracebacks = False


def _width(stderr: bool = False) -> int | None:
    """None: that of the terminal."""
    stream = sys.stderr if stderr else sys.stdout  # None where it is closed
    return None if stream is not None and stream.isatty() else WIDTH_OF_FILES


console = Console(stderr=True, width=_width(stderr=True))


def show_tracebacks(wanted: bool) -> None:
    """Whether bad input, too, ends with a traceback."""
    global _tracebacks
    _tracebacks = wanted


def shows_tracebacks() -> bool:
    """What was last wanted."""
    return _tracebacks


@contextmanager
def running(each_message_once: bool = False, interrupted: str = INTERRUPTED) -> Iterator[Reporter]:
    """Around every command: a reporter of progress, messages shown, and errors in one line.

    Bad input and a full disk end with exit code 1; our own bugs keep their traceback. Of several processes
    the first one shows progress and messages. ``interrupted``: the last line where the user stops it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that clean-up runs
    try:
        with _messages_shown(each_message_once), closing(progress_on(console)) as bars:
            yield bars if _speaks() else Reporter()
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        if _tracebacks or not (isinstance(error, InputError | OSError) or is_out_of_memory(error)):
            raise
        reason = _MEMORY if is_out_of_memory(error) else reason_of(error)
        console.print(f"[bold red]Error{_of_process()}:[/] ", end="")
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        if _speaks():
            console.print(interrupted)
        raise typer.Exit(130) from None


class _Messages(logging.Handler):
    """Shows what the library logs; of several processes the first says it."""

    def __init__(self, each_once: bool) -> None:
        super().__init__(logging.INFO)
        self._each_once, self._shown = each_once, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if _speaks() and not (self._each_once and line in self._shown):
            typer.echo(line, err=True)
        self._shown.add(line)


@contextmanager
def _messages_shown(each_once: bool) -> Iterator[None]:
    logger, handler = logging.getLogger("cryoforum"), _Messages(each_once)
    if logger.handlers:  # a command that runs inside another one, as a RELION job does
        yield
        return
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def share_among(devices: int) -> None:
    """Return at once where one process is wanted or several are running; else run the command in several.

    These are given the same arguments, and find out by their environment that they have been started.
    """
    from cryoforum.runtime.distributed import process_rank_and_count, start_processes

    _, count = process_rank_and_count()
    if devices == 1 or devices == count:
        return
    require(count == 1, f"no --devices where {count} processes were started", devices)
    raise typer.Exit(start_processes(devices, sys.argv[1:]))


def say(line: str) -> None:
    """What came out; of several processes the first says it."""
    if _speaks():
        typer.echo(line)


def say_what_was_written(
    summary: "PoseSummary", out: Path, particles: Sequence[Path], root: Path | None
) -> None:
    """How many poses are where, and how good they should be; of several processes the first says it."""
    from cryoforum.io.image_paths import common_folder

    if not _speaks():
        return
    typer.echo(f"{counted(summary.count, 'pose')} in {out}")
    bound = "" if summary.bound_deg is None else f", Cramér-Rao bound {summary.bound_deg:.2f}°"
    typer.echo(f"expected error {summary.expected_error_deg:.2f}°{bound} (medians)")
    if summary.junk is not None:
        typer.echo(f"{share_in_words(summary.junk, summary.count)} are probably junk")
    hint_at_root(out, common_folder(particles), root)


def counted(count: int, noun: str) -> str:
    """As "1 particle" or "2 particles"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def share_in_words(count: int, total: int) -> str:
    """As "237 of 1360 (17 %)"."""
    return f"{count} of {total} ({100 * count / max(total, 1):.0f} %)"


def show_filter(result: "FilterResult", out: Path) -> None:
    """How many particles were kept, up to which error, and how the errors are distributed."""
    total = result.kept + result.dropped
    typer.echo(f"kept {share_in_words(result.kept, total)} in {out}, dropped {result.dropped}")
    if result.errors_deg is None:
        return
    typer.echo(f"largest expected error among the kept: {result.threshold_deg:.2f}° (--max-error)")
    shares = (5, 25, 50, 75, 95)
    quantiles = (float(result.errors_deg.quantile(share / 100)) for share in shares)
    listed = ", ".join(f"{share} % {value:.2f}°" for share, value in zip(shares, quantiles, strict=True))
    typer.echo(f"expected errors of all: {listed}")
    if result.knee_deg is None:
        typer.echo("no knee: the expected errors are those of one population")
    else:
        surer = int((result.errors_deg <= result.knee_deg).sum())
        typer.echo(f"knee at {result.knee_deg:.2f}°: {share_in_words(surer, total)} are surer")


def _speaks() -> bool:
    """Whether this is the only process, or the first of several."""
    from cryoforum.runtime.distributed import is_first

    return is_first()


def _of_process() -> str:
    """Who has failed, unless it is the first, of whom nobody needs to be told."""
    from cryoforum.runtime.distributed import process_rank_and_count

    rank, count = process_rank_and_count()
    return f" in process {rank + 1} of {count}" if rank else ""


def hint_at_root(written: Path, folder: Path, root: Path | None = None) -> None:
    """Image names are kept as they were, so a file in another folder may need --root."""
    from cryoforum.io.particle_files import root_for_images

    needed = root_for_images(written, folder, root)
    if needed is not None:
        typer.echo(f"its images are not found from there: later steps may need --root {needed}")


def show_errors(summaries: "dict[str, ErrorSummary]") -> None:
    """A short table of orientation errors."""
    heads = ("error of", "n", "median (rad)", "mean (rad)", "quartiles", "> 17.2° (0.3)")
    table = Table(*heads, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)  # as wide as a terminal
    for name, summary in summaries.items():
        quartiles = f"{in_degrees(summary.lower_quartile_rad)}-{in_degrees(summary.upper_quartile_rad)}"
        table.add_row(
            name,
            str(summary.count),
            compact_angle(summary.median_rad),
            compact_angle(summary.mean_rad),
            quartiles,
            f"{100 * summary.share_above_0_3_rad:.1f} %",
        )
    Console(width=_width()).print(table)


def show_calibration(card: "CalibrationCard") -> None:
    """How many errors are within what was stated: of all, by quarters, and of the worst cone and group."""
    worst = {name: f"worst {kind}" for kind in ("view cone", "optics group") if (name := card.worst_of(kind))}
    heads = ("errors within stated", "n", *(f"{level:.0%}" for level in card.levels), "stated (rms)", "found")
    table = Table(*heads, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for name, one in card.coverage.items():
        if name == "all" or "quarter" in name or name in worst:
            shares = (f"{100 * share:.0f} %" for share in one.shares)
            errors = in_degrees(one.expected_rad), in_degrees(one.found_rad)
            table.add_row(worst.get(name, name), str(one.count), *shares, *errors)
    Console(width=_width()).print(table)
    typer.echo(
        f"rank correlation of stated and found errors: {card.rank_correlation:.2f}; "
        f"mean log density of the truth: {card.mean_log_density:.2f}"
    )


def show_resolution(resolution: "dict[str, float | bool]") -> None:
    """Resolutions, which of them to publish, and whether the half sets allow that."""
    unmasked, masked, corrected = (resolution[kind] for kind in ("unmasked", "masked", "corrected"))
    typer.echo(
        f"resolution at FSC 0.143: {unmasked:.1f} Å unmasked, {masked:.1f} Å masked, "
        f"{corrected:.1f} Å masked and corrected for the mask by phase randomisation"
    )
    if resolution["independent"]:
        typer.echo(f"halves independent: publish {corrected:.1f} Å, with the mask")
    else:
        typer.echo(
            "halves not independent: the poses of one may depend on the images of the other, and the "
            "resolution is optimistic; publish that of half sets kept apart"
        )


def show_refined(summary: "RefineSummary", out: Path) -> None:
    """Resolution and particles of each class; of several processes the first says it."""
    if not _speaks():
        return
    typer.echo(
        f"{counted(summary.rounds, 'round')}; expected error {summary.expected_error_deg:.2f}° (median)"
    )
    total = sum(one.count for one in summary.classes)
    for number, one in enumerate(summary.classes, 1):
        which = f"class {number}, {share_in_words(one.count, total)}: " if len(summary.classes) > 1 else ""
        typer.echo(f"{which}resolution {one.resolution_angstrom:.1f} Å (FSC 0.143, corrected for the mask)")
    if summary.found_nothing:
        typer.echo(
            "nothing was found: the half maps do not agree beyond the resolution of the start; the images "
            "may hold no particles, another molecule, or too few of them"
        )
    typer.echo(f"poses in {out / 'predictions.star'}, maps and report.html in {out}")


def show_demo(result: "DemoResult") -> None:
    """Errors, bound and resolutions that the demonstration found."""
    names = {"network": "network alone", "all": "predicted", "kept": "kept"}
    if result.bound is not None:
        names |= {"all": "refined", "kept": "refined, kept"}
    show_errors({names[group]: errors for group, errors in result.errors.items()})
    if result.bound is not None:
        typer.echo(
            f"Cramér-Rao bound: median {result.bound.median_deg:.2f}°; median error / bound "
            f"{result.bound.median_error_over_bound:.2f} (a perfect estimator: 0.89)"
        )
        shifts = (f"{names[group]} {median:.3f} px" for group, median in result.shift_medians_pixel.items())
        typer.echo(f"median shift error: {'; '.join(shifts)}")
    for name, resolution in result.resolutions.items():
        note = "" if resolution["independent"] else "; halves not independent, optimistic"
        typer.echo(f"map from {name} poses: {resolution['masked']:.1f} Å (masked FSC 0.143{note})")


def show_check(check: "Check") -> None:
    """The contents of a file, other interpretations of its columns, and its problems with their fixes."""
    table = Table(show_header=False)
    for what, understood in check.inventory:
        table.add_row(Text(what), Text(understood))
    Console(width=_width()).print(table)
    if check.findings is not None:
        _show_alternatives(check.findings.alternatives)
    if check.comparison is not None:
        hands = check.comparison.correlation, check.comparison.mirrored_correlation
        typer.echo(f"correlation with the reference: {hands[0]:.3f}; of the other hand: {hands[1]:.3f}")
    if check.undecided:
        typer.echo(f"cannot tell: {', '.join(check.undecided)}")
    for problem in check.problems:
        typer.echo(f"Problem: {problem.fault}\n  Fix: {problem.fix}")
    if check.correction is not None:
        typer.echo(f"corrected by: {check.correction}")
    typer.echo(check.conclusion)


def _show_alternatives(alternatives: "Sequence[Alternative]") -> None:
    """The alternatives that are not excluded, the best first, and the nearest one of those that are."""
    from cryoforum.commands.check.findings import ALTERNATIVES_HEADER, Outcome

    table = Table(*ALTERNATIVES_HEADER[:2])
    for quantity in ALTERNATIVES_HEADER[2:]:
        table.add_column(quantity, justify="right", max_width=24)
    ordered = sorted(alternatives, key=lambda alternative: -alternative.share)
    excluded = [alternative for alternative in ordered if alternative.outcome is Outcome.WORSE]
    for alternative in [one for one in ordered if one not in excluded] + excluded[:1]:
        table.add_row(*map(Text, alternative.cells))
    if len(excluded) > 1:
        best = f"{100 * excluded[1].share:+.1f} % or less"
        table.add_row(f"{len(excluded) - 1} more", Outcome.WORSE, "", best)
    Console(width=_width()).print(table)
