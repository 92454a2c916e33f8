"""Ctrl-C in the middle of a training: answered at once, and nothing that was learned is lost."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

from maml_edu.engine.progress_line import say


class Interruption:
    """Within it, Ctrl-C and SIGTERM wait until the iteration is whole; a second one waits only for what is held.

    asked: the signal that came, or None. quiet: without the answer. echoed: what comes within a second is the same one
    (one Ctrl-C reaches a rank of torchrun from the terminal, and again from torchrun, as SIGINT or SIGTERM).
    """

    def __init__(self, quiet: bool = False, echoed: bool = False) -> None:
        self.asked: int | None = None
        self._quiet, self._again, self._held = quiet, False, False
        self._deaf, self._since = 1.0 if echoed else 0.0, 0.0  # seconds

    def __enter__(self) -> "Interruption":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = {which: signal.signal(which, self._ask) for which in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler)

    def _ask(self, which: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self._since = which, time.monotonic()
            if not self._quiet:
                how = "press Ctrl-C again to stop without it" if which == signal.SIGINT else "another one stops at once"
                say(f"\n{signal.Signals(which).name}: finishing this iteration; {how}")
        elif time.monotonic() - self._since >= self._deaf:
            self._again = True
            self._stop_if_asked_again()

    def _stop_if_asked_again(self) -> None:
        if self._again and not self._held:
            self._held = True  # once: what follows is the saving
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within, no interruption comes: what belongs together changes together."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._stop_if_asked_again()

    def hold(self) -> None:
        """From here on no interruption comes: the run is being saved."""
        self._held = True
