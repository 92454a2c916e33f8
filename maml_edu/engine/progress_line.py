"""What a run says while it trains. Output may fail (a closed pipe, a full disk), and the run goes on."""

import contextlib
import os
import sys
import time
import warnings

from tqdm import tqdm

# Whole lines only, on stdout: looks the same live and stored in a notebook.
BAR = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{postfix}"


def say(text: str, end: str = "\n") -> None:
    """Print, if that is possible."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: closed, or a letter that the stream lacks
        try:
            print(text, end=end, flush=True)
        except RuntimeError:  # said by the handler of a signal that came in the middle of a print
            os.write(sys.stdout.fileno(), f"{text}{end}".encode())


def warn(text: str) -> None:
    """A warning in one line: it belongs to the run, and no line of the caller's program is quoted with it."""
    warnings.warn_explicit(text, UserWarning, "maml_edu", 0)


class ProgressLine:
    """One line that is written anew: iterations done, the query loss, tasks per second, the time left."""

    def __init__(self, description: str | None, first: int, iterations: int, tasks: int) -> None:
        """Nothing is printed if description is None. tasks: in a meta-batch."""
        self._bar = tqdm(
            total=iterations,
            initial=first,
            desc=description,
            file=_Output(),
            bar_format=BAR,
            disable=description is None,
        )
        self._tasks, self._done, self._since = tasks, first, time.monotonic()

    def update(self, done: int, query_loss: float, validation: float | None) -> None:
        """After `done` iterations; query_loss and validation: the latest known."""
        text = f"query loss {query_loss:.3f}"
        if validation is not None:
            text += f", validation {validation:.3f}"
        now, left = time.monotonic(), self._bar.total - done
        if left:  # the last state stays on the page: nothing in it that differs from run to run
            tasks_per_second = self._tasks * (done - self._done) / max(now - self._since, 1e-9)
            seconds = int(left * self._tasks / tasks_per_second)
            text += f", {tasks_per_second:.0f} tasks/s, {seconds // 60}:{seconds % 60:02d} left"
        self._bar.update(done - self._done)
        self._bar.set_postfix_str(text)
        self._done, self._since = done, now

    def close(self) -> None:
        self._bar.close()


class _Output:
    """Stdout, as it is when something is written."""

    @property
    def encoding(self) -> str:
        return getattr(sys.stdout, "encoding", None) or "ascii"

    def write(self, text: str) -> None:
        say(text, end="")

    def flush(self) -> None:
        """Done by `say`."""
