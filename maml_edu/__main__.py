"""The command line: python -m maml_edu train | evaluate | data | handout | slides.

Every run leaves result.json and checkpoint.pt; handout and slides are for teachers.
"""

import argparse
import errno
import os
import sys
from pathlib import Path

import torch

from maml_edu.engine import distributed
from maml_edu.experiments.runner import METHODS, evaluate_run, train_run


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Impossible settings are one line on stderr and exit code 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        run = {"train": train_run, "evaluate": evaluate_run, "data": _data, "handout": _handout, "slides": _slides}
        return run[args.command](args)
    except ModuleNotFoundError as error:
        print(f"maml_edu: this needs one more package: pip install {error.name}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # inside the training loop `train` handles it
        started = args.command == "train" and (args.out / "checkpoint.pt").exists()
        way_on = "; the training so far is kept: give the command again with --resume" if started else ""
        print(f"maml_edu: interrupted, no result written{way_on}", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        way_out = "; free some space and give the command again with --resume" if full else ""
        print(f"maml_edu: {error}{way_out}", file=sys.stderr)
        return 2
    finally:
        distributed.leave()


def _parser():
    parser = argparse.ArgumentParser(prog="python -m maml_edu", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("train", "meta-train and evaluate"), ("evaluate", "evaluate a checkpoint on fresh test tasks")):
        p = commands.add_parser(
            name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
        )
        p.add_argument("--dataset", choices=("omniglot", "glyphs", "sine"), default="omniglot")
        p.add_argument(
            "--preset", choices=("smoke", "quick", "full"), default=os.environ.get("MAML_EDU_PRESET", "quick")
        )
        p.add_argument("--method", choices=tuple(METHODS), default="maml")
        p.add_argument("--ways", type=int, default=5)
        for flag, kind, text in (
            ("shots", int, "examples per class, or per sine"),
            ("test-shots", int, "shots at test; default: as in training"),
            ("queries", int, "query examples per class in training; default: as many as shots"),
            ("test-queries", int, "query examples per class at test; default: as many as shots there"),
            ("steps", int, "inner steps in training"),
            ("test-steps", int, "inner steps at test: the headline score is the one after these"),
            ("alpha", float, "inner step size"),
            ("tasks", int, "tasks per meta-batch"),
            ("iterations", int, "outer steps"),
            ("filters", int, "filters per convolution"),
            ("lr", float, "outer learning rate (Adam)"),
        ):
            text = text if "default" in text else text + "; default: the preset's"
            p.add_argument(f"--{flag}", type=kind, default=None, help=text)
        p.add_argument(
            "--init", choices=("fan-in", "paper"), default="paper", help="initial weights of the sine network"
        )
        p.add_argument("--schedule", choices=("constant", "cosine"), default="constant")
        p.add_argument("--learn-alpha", action="store_true", help="learn one α per parameter tensor and inner step")
        p.add_argument("--alpha-lr", type=float, default=1e-2, help="learning rate (Adam) of a learned α")
        p.add_argument(
            "--multi-step", type=int, default=0, help="iterations in which the loss after every inner step counts"
        )
        p.add_argument("--clip", type=float, default=None, help="largest norm of the meta-gradient; none by default")
        p.add_argument("--split", choices=("finn", "lake"), default="finn")
        p.add_argument("--test-tasks", type=int, default=600)
        p.add_argument("--seed", type=int, default=0)
        p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
        p.add_argument(
            "--precision",
            choices=("float32", "float64", "tf32"),
            default="float32",
            help="tf32: float32 numbers multiplied with 10 bits of mantissa, on CUDA devices that have it",
        )
        p.add_argument("--threads", type=int, default=1, help="CPU threads; small networks are fastest with 1")
        p.add_argument("--out", type=Path, required=True, help="folder for result.json and checkpoint.pt")
        if name == "train":
            p.add_argument("--resume", action="store_true")
            p.add_argument("--compile", action="store_true", help="compile the meta-gradient (torch.compile)")
        else:
            p.add_argument("--checkpoint", required=True, help="a file, or the name of a shipped checkpoint")
    data = commands.add_parser("data", help="download Omniglot, or verify it where MAML_EDU_DATA points")
    data.add_argument("--root", default=None)
    data.set_defaults(threads=1)
    handout = commands.add_parser("handout", help="copy the notebooks for students: no outputs, exercises open")
    handout.add_argument("out", type=Path, help="a new folder")
    handout.add_argument("notebooks", type=Path, nargs="*", help="default: all of the series")
    handout.add_argument("--solutions", action="store_true", help="with the reference in place of every stub")
    slides = commands.add_parser("slides", help="slides of a notebook as one HTML file that needs no network")
    slides.add_argument("notebook", type=Path)
    slides.add_argument("out", type=Path, help="an HTML file")
    for p in (handout, slides):
        p.set_defaults(threads=1)
    return parser


def _data(args):
    from maml_edu.data.omniglot_files import omniglot

    found = omniglot(args.root)
    print(f"Omniglot: {len(found.names)} characters of {len(set(found.alphabets))} alphabets, content verified")
    return 0


def _handout(args):
    from maml_edu.classroom.handouts import write_handout

    written = write_handout(args.out, args.notebooks, args.solutions)
    print(f"wrote {len(written)} notebooks to {args.out}{', solved' if args.solutions else ''}")
    return 0


def _slides(args):
    from maml_edu.classroom.slides import write_slides

    print(f"wrote {write_slides(args.notebook, args.out)} slides to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
