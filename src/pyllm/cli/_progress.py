"""Progress on standard error: a bar on a terminal, lines elsewhere, once there is something to wait for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pyllm.cli._output import note
from pyllm.config import Progress

_PATIENCE = 0.4
"""Seconds before anything is shown."""
_LINE_EVERY = 5.0
"""Seconds between lines, at least ..."""
_LINE_SHARE = 0.1
"""... and by which share of the time that has passed."""


class Lines:
    """Progress in lines, for logs: the first after some seconds, later ones ever less often."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._next = self._start + _LINE_EVERY

    def report(self, text: str, share: float) -> None:
        """A `pyllm.config.Progress`."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + max(_LINE_EVERY, _LINE_SHARE * (now - self._start))
        note(f"{text}: {share:.0%}")


def counted(what: str, display: Display) -> Callable[[int, int], None] | None:
    """A callback (done, total) that shows how many of `what` are done."""
    report = display.progress
    return None if report is None else lambda done, total: report(f"{done} of {total} {what}", done / total)


class Display:
    """Context manager whose `progress` is a `pyllm.config.Progress`, or None where no terminal shows it.

    A thread draws the bar: compiling reports once, and then nothing for seconds. `lines`: without a terminal, write
    lines instead; for work of minutes.
    """

    def __init__(self, lines: bool = False) -> None:
        self._lines = Lines() if lines else None
        self._lock = threading.Lock()
        self._text, self._share = "", 0.0
        self._bar: Any = None
        self._task: Any = None
        self._timer: threading.Timer | None = None
        self._closed = False

    @property
    def progress(self) -> Progress | None:
        if sys.stderr.isatty():
            return self._report
        return self._lines.report if self._lines is not None else None

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _report(self, text: str, share: float) -> None:
        with self._lock:
            if self._closed:
                return
            new = text != self._text
            self._text, self._share = text, share
            if self._bar is not None:
                if new:
                    self._bar.reset(self._task, description=text)
                self._bar.update(self._task, completed=share)
            elif self._timer is None:
                self._timer = threading.Timer(_PATIENCE, self._start)
                self._timer.daemon = True
                self._timer.start()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        with self._lock:
            if self._closed:
                return
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._text, total=1.0, completed=self._share)
            self._bar.start()
