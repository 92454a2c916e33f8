"""The command line, made of the fields of `Config`: the same flag means the same in every command."""

import argparse
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from maml_edu.experiments.config import DEFAULTS, OPTIONS, PRESETS, TYPES, Config, flag
from maml_edu.experiments.method_registry import METHODS, methods_of
from maml_edu.experiments.settings import configure, defaults

COMMANDS = {
    "train": "meta-train one method, and score it on test tasks",
    "evaluate": "score a checkpoint on fresh test tasks",
    "compare": "train several methods alike on 5-way 1-shot characters, and print their table",
    "navigate": "meta-train a policy on 2-D navigation, and score it on new goals",
    "handout": "copy the notebooks for students: no outputs, exercises open",
    "slides": "slides of a notebook as one HTML file that needs no network",
    "data": "download Omniglot, or verify it where MAML_EDU_DATA points",
}
REQUIRED = ("out", "checkpoint")


def parse(argv: Sequence[str] | None = None) -> Config:
    """The Config that a command line asks for. Raises ValueError, in one line, for anything that makes no sense."""
    argv = sys.argv[1:] if argv is None else argv
    given = vars(_parser().parse_args(argv))
    command = given.pop("command")
    return configure(command, given, arguments=argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(prog="python -m maml_edu", description="Meta-learning experiments.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for command, summary in COMMANDS.items():
        one = commands.add_parser(
            command,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=_epilog(command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        for name in OPTIONS:
            if command in OPTIONS[name].metadata["commands"]:
                _add(one, command, name)
    return parser


def _add(parser: _Parser, command: str, name: str) -> None:
    meta, kind = OPTIONS[name].metadata, TYPES[name]
    help = " ".join([meta["help"], _default(command, name)]).strip().replace("%", "%%")
    if kind is bool:
        parser.add_argument(flag(name), action="store_true", help=help)
        return
    several = typing.get_origin(kind) is tuple
    if several or isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    readers: dict[type, Callable[[str], object]] = {int: int, float: float, Path: _path}
    read = _file_or_name if name == "checkpoint" else readers.get(kind, str)
    positional = meta.get("positional", {}).get(command)
    if positional is not None:
        parser.add_argument(name, type=read, help=positional, nargs="*" if several else None)
        return
    offered = choices(command, name)
    parser.add_argument(
        flag(name),
        type=read,
        choices=offered,
        required=name in REQUIRED,
        metavar=None if offered and len(offered) < 4 else "METHOD" if offered else kind.__name__.upper(),
        help=help,
        nargs="+" if several else None,
    )


def choices(command: str, name: str) -> tuple[str, ...] | None:
    """What an option may be in a command; None if anything of its type."""
    offered = OPTIONS[name].metadata.get("choices")
    if offered == "method":
        return methods_of(command)
    return offered[command] if isinstance(offered, dict) else offered


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who has no home here
        raise argparse.ArgumentTypeError(str(error)) from error


def _file_or_name(text: str) -> str:
    return str(_path(text))


# ---------------------------------------------------------------- what --help says of defaults


def _default(command: str, name: str) -> str:
    meta = OPTIONS[name].metadata
    if command == "evaluate" and name in ("dataset", "ways", "split", "test_shots", "test_queries", "test_steps"):
        return "(default: the checkpoint's)"
    if "default_text" in meta:
        return f"(default: {meta['default_text']})" if meta["default_text"] else ""
    several = command == "train" and name != "dataset"
    presets = PRESETS if several else ("quick",)
    of_kind = {
        kind: [_shown(_defaults(command, kind, preset).get(name, OPTIONS[name].default)) for preset in presets]
        for kind in (dict.fromkeys(kind for kind, _ in DEFAULTS) if several else [""])
        if not several or kind in meta.get("kinds", (kind,))
    }
    texts = {kind: values[0] if len(set(values)) == 1 else " / ".join(values) for kind, values in of_kind.items()}
    if len(set(texts.values())) == 1:
        return f"(default: {next(iter(texts.values()))})"
    return f"(default: {'; '.join(f'{kind} {text}' for kind, text in texts.items())})"


def _defaults(command: str, kind: str, preset: str) -> dict[str, object]:
    return defaults(command, {"characters": "omniglot"}.get(kind, kind), preset)


def _shown(value: object) -> str:
    if value is True or value is False:
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _epilog(command: str) -> str | None:
    if command not in ("train", "navigate"):
        return None
    lines = ["methods, with the defaults of their own:"]
    for name in methods_of(command):
        entry = METHODS[name]
        lines.append(f"  {name:13} {entry.summary}")
        for kind, settings in entry.defaults.items():
            if (kind == "navigation") == (command == "navigate"):
                shown = ", ".join(f"{flag(k)[2:]} {_own(k, v)}" for k, v in settings.items())
                lines.append(f"  {'':13}   {kind}: {shown}")
    if command == "train":
        lines.append("\na / b / c: with --preset smoke / quick / full.")
        lines.append("Without a network, point MAML_EDU_DATA at the two archives of Omniglot, or use --dataset glyphs.")
    return "\n".join(lines)


def _own(name: str, value: object) -> str:
    return "1 to 10, drawn anew for every meta-batch" if name == "shots" and value == 0 else _shown(value)
