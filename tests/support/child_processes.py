"""Child processes without the seconds that a new Python takes: forks of this one, with everything imported."""

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable

import torch
from tqdm import tqdm

torch.optim.Adam([torch.zeros(1)])  # its first call imports torch's compiler: once, before the forks


class Child:
    """A fork that runs `function()`, which returns the exit status; stdout and stderr come through one pipe.

    environment: variables to set. output: a file descriptor to write to instead of the pipe.
    """

    def __init__(
        self, function: Callable[[], int], environment: dict[str, str] | None = None, output: int | None = None
    ):
        self.out, theirs = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                signal.alarm(120)  # none outlives a test that failed, nor waits for ever
                os.setpgid(0, 0)
                for which in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(which, signal.default_int_handler if which == signal.SIGINT else signal.SIG_DFL)
                os.dup2(theirs if output is None else output, 1)
                os.dup2(theirs, 2)
                os.closerange(3, 256)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
                tqdm.set_lock(threading.RLock())  # the other is shared with processes that may be killed holding it
                os.environ.update(environment or {})
                status = function()
            except BaseException:
                traceback.print_exc()
            finally:
                try:
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:
                    os._exit(status)
        os.close(theirs)
        self.said = ""

    def until(self, text: str) -> "Child":
        """Wait until it has said this."""
        while text not in self.said:
            more = os.read(self.out, 1 << 16).decode(errors="replace")
            assert more, f"it ended without {text!r}: {self.said}"
            self.said += more
        return self

    def kill(self, which: int) -> "Child":
        os.kill(self.pid, which)
        return self

    def ended(self) -> int:
        """Wait for its end: the exit status, or minus the signal that killed it."""
        while more := os.read(self.out, 1 << 16).decode(errors="replace"):
            self.said += more
        os.close(self.out)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def ranks(function: Callable[[], int], number: int = 2) -> list[Child]:
    """`function` in processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": str(number), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [Child(function, {**where, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(number)]
