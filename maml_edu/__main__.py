"""The command line: python -m maml_edu train | evaluate | compare | navigate | handout | slides | data.

What a command is asked to do is a `Config`; nothing heavy is imported before it is known to make sense.
"""

import contextlib
import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maml_edu.experiments.config import Config

RESUMABLE = ("train", "compare", "navigate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What can't be done is one line on stderr and exit code 2."""
    config = None
    with _one_line_warnings(), _patient_output():
        try:
            from maml_edu.experiments.arguments import parse

            config = parse(argv)
            return _run(config)
        except SystemExit as ended:  # after --help
            return int(ended.code or 0)
        except KeyboardInterrupt:  # inside the training loop `train` handles it
            _complain(f"interrupted, nothing written{_way_on(config)}")
            return 128 + signal.SIGINT
        except ModuleNotFoundError as error:
            _complain(f"this needs one more package: pip install {error.name}")
        except OSError as error:
            full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
            _complain(f"{_in_words(error)}{_way_on(config, 'free some space, then ') if full else ''}")
        except (ValueError, RuntimeError) as error:
            _complain(str(error))
        finally:
            _leave()
    return 2


def _run(config: "Config") -> int:
    from maml_edu.engine.progress_line import say

    if config.command == "handout":
        from maml_edu.classroom.handouts import write_handout

        written = write_handout(config.out, config.notebooks, config.solutions)
        say(f"wrote {len(written)} {'solved ' if config.solutions else ''}notebooks to {config.out}")
    elif config.command == "slides":
        from maml_edu.classroom.slides import write_slides

        say(f"wrote {write_slides(config.notebook, config.out)} slides to {config.out}")
    elif config.command == "data":
        from maml_edu.data.omniglot_files import omniglot

        data = omniglot(config.root, verify=True)
        say(f"Omniglot: {len(data.names)} characters of {len(set(data.alphabets))} alphabets, content verified")
    else:
        return _run_experiment(config)
    return 0


def _run_experiment(config: "Config") -> int:
    import torch

    from maml_edu.experiments.comparison import compare_run
    from maml_edu.experiments.navigation_training import navigate_run
    from maml_edu.experiments.runner import evaluate_run, train_run

    torch.set_num_threads(config.threads)
    run = {"train": train_run, "evaluate": evaluate_run, "compare": compare_run, "navigate": navigate_run}
    return run[config.command](config)


def _leave() -> None:
    """Leave the other processes, if there are any; without importing torch for it."""
    if distributed := sys.modules.get("maml_edu.engine.distributed"):
        distributed.leave()


# ---------------------------------------------------------------- what is said, and where to


def _complain(text: str) -> None:
    """One line on stderr, whatever the text."""
    with contextlib.suppress(OSError, ValueError):
        print(f"maml_edu: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _in_words(error: OSError) -> str:
    """Without "[Errno 17]"."""
    if error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return error.strerror or str(error)


def _way_on(config: "Config | None", first: str = "") -> str:
    """How to go on, where there is something to go on with."""
    if config is None or config.command not in RESUMABLE:
        return f"; {first}give the command again" if first else ""
    from maml_edu.experiments.config import CHECKPOINT

    kept = (config.out / CHECKPOINT).exists() or any(config.out.glob(f"*/{CHECKPOINT}"))
    if not kept and not first:
        return ""
    return f"; {first}give the command again with --resume{': the training so far is kept' if kept else ''}"


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings without the line of code that they come from."""

    def in_one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return f"maml_edu: warning: {' '.join(str(message).split())}\n"

    before, warnings.formatwarning = warnings.formatwarning, in_one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def _patient_output() -> Iterator[None]:
    """Output never fails for want of a letter; nor, at the end, for want of a reader or of space on the disk."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with contextlib.suppress(BrokenPipeError):
            yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):  # ValueError: no file behind it
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
