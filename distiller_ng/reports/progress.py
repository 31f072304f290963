"""A progress bar for training with loss, learning rate and sparsity; silent when nobody watches (layer 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["TrainingProgress"]

T = TypeVar("T")


class TrainingProgress:
    """A context manager that shows one bar at a time.

    Without a terminal (a pipe, a file, a CI log) nothing is drawn, unless ``enabled=True``; ``enabled=False`` draws
    nothing anywhere::

        with TrainingProgress() as progress:
            for epoch in range(10):
                for images, labels in progress.track(loader, f"epoch {epoch}"):
                    ...
                    progress.show(loss=0.3, lr=0.1, sparsity=0.5)
    """

    def __init__(self, *, enabled: bool | None = None, console: Console | None = None) -> None:
        self.console = console or Console()
        self.enabled = self.console.is_terminal if enabled is None else enabled
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[statistics]}"),
            console=self.console,
            disable=not self.enabled,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def track(self, steps: Iterable[T], description: str = "", *, total: int | None = None) -> Iterator[T]:
        """Go through ``steps``, moving a bar of ``total`` (their number if they have one); it ends with them."""
        if total is None and isinstance(steps, Sized):
            total = len(steps)
        self.begin(description, total)
        try:
            for step in steps:
                yield step
                self.advance()
        finally:
            self.end()

    def begin(self, description: str = "", total: int | None = None) -> None:
        """Start a new bar in place of the one shown."""
        self.end()
        self._task = self._bar.add_task(description, total=total, statistics="")

    def advance(self, steps: int = 1) -> None:
        """Move the bar on."""
        if self._task is not None:
            self._bar.advance(self._task, steps)

    def show(
        self,
        *,
        loss: float | None = None,
        lr: float | None = None,
        sparsity: float | None = None,
        **others: float | None,
    ) -> None:
        """Show numbers beside the bar: ``sparsity`` is a fraction, 0.5 shows as 50.0 %. None leaves one out."""
        parts = [f"loss {loss:.4f}"] if loss is not None else []
        parts += [f"lr {lr:.3g}"] if lr is not None else []
        parts += [f"sparsity {sparsity:.1%}"] if sparsity is not None else []
        parts += [f"{name} {value:.4g}" for name, value in others.items() if value is not None]
        if self._task is not None:
            self._bar.update(self._task, statistics="  ".join(parts))

    def end(self) -> None:
        """Remove the bar."""
        if self._task is not None:
            self._bar.refresh()  # else a bar that lived for less than a tenth of a second shows nothing
            self._bar.remove_task(self._task)
            self._task = None
