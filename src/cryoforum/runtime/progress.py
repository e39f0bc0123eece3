"""How steps get on: bars in a terminal, a line now and then where a file or a pipe takes what is shown."""

import math
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cryoforum.runtime.reporter import Reporter, TrainingProgress

LINE_SECONDS = 30.0  # between two lines of a step where a file or a pipe takes them


def angle(radians: float) -> str:
    """In degrees and, in brackets, radians."""
    return f"{in_degrees(radians)} ({radians:.4f} rad)"


def compact_angle(radians: float) -> str:
    """The same where a heading names the unit."""
    return f"{in_degrees(radians)} ({radians:.4f})"


def in_degrees(radians: float) -> str:
    """With one decimal, two where it is small."""
    degrees = math.degrees(radians)
    return f"{degrees:.{1 if degrees >= 1 else 2}f}°"


class ShownProgress(Reporter):
    """A reporter that has to be closed."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def progress_here() -> ShownProgress:
    """Bars in a terminal or a notebook; lines on standard error where neither is there."""
    console = Console()
    return progress_on(console if console.is_terminal or console.is_jupyter else Console(stderr=True))


def progress_on(console: Console) -> ShownProgress:
    """What suits the place that ``console`` writes to."""
    return _Bars(console) if console.is_terminal or console.is_jupyter else Lines(console)


class Lines(ShownProgress):
    """A line for a step every half minute, and one when it is done."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._training: _Pace | None = None

    def progress(self, description: str, total: int) -> Callable[[int], None]:
        """A line when it is due; see `Reporter.progress`."""
        pace, done = _Pace(self._clock), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if total and pace.is_due(done / total):
                self._say(f"{description}: {done} of {total}, {pace.in_words(done, done / total)}")

        return advance

    def training(self, progress: TrainingProgress) -> None:
        """A line when it is due; see `Reporter.training`."""
        images, fraction = progress.images, progress.fraction
        pace = self._training = self._training or _Pace(self._clock, images, fraction)
        if pace.is_due(fraction):
            self._say(
                f"training: {100 * fraction:.0f} %, {_how_it_learns(progress)}, "
                f"{pace.in_words(images, fraction)}"
            )
        if fraction >= 1:
            self._training = None

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Pace:
    """When a step began, how far it was, and when it was last spoken of."""

    def __init__(self, clock: Callable[[], float], images: int = 0, fraction: float = 0.0) -> None:
        self._clock, self._images, self._fraction = clock, images, fraction
        self._start = self._said = clock()

    def is_due(self, fraction: float) -> bool:
        """Whether it is time for a line: at the end, and `LINE_SECONDS` after the last one."""
        now = self._clock()
        due = fraction >= 1 or now - self._said >= LINE_SECONDS
        if due:
            self._said = now
        return due

    def in_words(self, images: int, fraction: float) -> str:
        """How fast it is, and how long it will still take or, at the end, how long it took."""
        taken = max(self._clock() - self._start, 1e-9)
        speed = f"{(images - self._images) / taken:.0f} images/s"
        if fraction >= 1:
            return f"{speed}, {_duration(taken)} in all"
        return f"{speed}, {_duration(taken * (1 - fraction) / max(fraction - self._fraction, 1e-9))} left"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, 1e8))))


def _how_it_learns(progress: TrainingProgress) -> str:
    median = progress.validation_median_rad
    return f"loss {progress.loss:.2f}" + ("" if median is None else f", error {angle(median)}")


class _ImagesPerSecond(ProgressColumn):
    """Speed so far."""

    def render(self, task: Task) -> Text:
        images = task.fields.get("images", task.completed)
        return Text(f"{images / max(task.elapsed or 0, 1e-9):.0f} images/s")


class _Bars(ShownProgress):
    """A progress bar for every step, and one for a training: loss and validation error beside it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._running: list[Progress] = []
        self._training: Progress | None = None

    def progress(self, description: str, total: int) -> Callable[[int], None]:
        progress = self._started(BarColumn(), _ImagesPerSecond(), TimeRemainingColumn())
        task = progress.add_task(description, total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)
            if progress.finished:
                progress.stop()

        return advance

    def training(self, progress: TrainingProgress) -> None:
        if self._training is None:
            note = TextColumn("{task.fields[note]}")
            self._training = self._started(BarColumn(), _ImagesPerSecond(), note, TimeRemainingColumn())
            self._training.add_task("training", total=1.0, note="", images=0)
        (task,) = self._training.task_ids
        self._training.update(
            task, completed=progress.fraction, images=progress.images, note=_how_it_learns(progress)
        )
        if progress.fraction >= 1:
            self._training.stop()
            self._training = None

    def close(self) -> None:
        for progress in self._running:
            progress.stop()

    def _started(self, *columns: ProgressColumn) -> Progress:
        progress = Progress(TextColumn("{task.description:>16}"), *columns, console=self._console)
        progress.start()
        self._running.append(progress)
        return progress
