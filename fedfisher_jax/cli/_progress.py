"""Progress bars with the time that is left, on the error stream."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def bars(console: Console, disable: bool = False) -> Progress:
    """Make a progress display, a context manager."""
    columns = TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn()
    return Progress(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console, disable=disable
    )


def stage(progress: Progress, name: str, total: int) -> Callable[..., None]:
    """Add a bar; the function that is returned moves it on."""
    task = progress.add_task(name, total=total)
    return lambda count=1: progress.update(task, advance=count)
