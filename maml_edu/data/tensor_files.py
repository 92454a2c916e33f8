"""Files of tensors, numbers, strings, lists and dicts: verified when they are read, and unable to run code.

The format is that of `torch.save`, a zip archive without compression. It keeps a checksum of each of its parts, which
`torch.load` does not look at; `read_tensors` does.
"""

import errno
import io
import numbers
import os
import pickletools
import stat
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from maml_edu.data.atomic_write import write_atomically

# All that the pickle in such a file may name: what puts dicts and tensors together.
_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_KNOWN = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
_KNOWN |= {f"torch {kind}Storage" for kind in _KINDS}
_LARGEST_PICKLE = 1 << 24  # bytes; the numbers of the tensors are not in it


def write_tensors(path: str | Path, content: dict[str, object]) -> None:
    """Write a dict, all of it or nothing. Raises OSError (a full disk), TypeError for what such a file cannot hold."""
    buffer = io.BytesIO()
    torch.save(plain(content), buffer)
    write_atomically(path, buffer.getvalue())


def read_tensors(path: str | Path) -> dict[str, object]:
    """The dict that `write_tensors` wrote, with all tensors on the CPU.

    Raises OSError if the file cannot be read (there is none, no permission), ValueError if it is damaged or holds
    something else. It takes memory in proportion to the bytes of the file, whatever these say.
    """
    path = Path(path).expanduser()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise ValueError(f"{path} is not a regular file; name a checkpoint file")
        with open(path, "rb") as file:
            named = _verified(path, file)
            if foreign := sorted(named - _KNOWN):
                names = ", ".join(name.replace("__builtin__ ", "").replace(" ", ".") for name in foreign[:3])
                raise ValueError(
                    f"{path} holds Python objects ({names:.200}), which are not read because they can run code; write "
                    "it again with tensors, numbers, strings, lists and dicts, or name another file"
                )
            file.seek(0)
            try:
                content = plain(torch.load(file, map_location="cpu", weights_only=True))
            except Exception as error:  # a pickle written to deceive can raise anything
                raise _unreadable(path, type(error).__name__) from error
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise _unreadable(path, "it holds no dict")
    return content


def _verified(path: Path, file: IO[bytes]) -> set[str]:
    """What the pickle in the archive names. Raises ValueError unless every part is as it was written."""
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or (
                sum(part.file_size for part in parts) > os.fstat(file.fileno()).st_size
            ):
                raise ValueError("its parts are compressed")  # a few bytes could unfold into all of the memory
            if part := archive.testzip():
                raise ValueError(f"the checksum of {part} does not match")
            pickles = [part for part in parts if part.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _LARGEST_PICKLE:
                raise ValueError("it holds no data.pkl")
            codes = pickletools.genops(archive.read(pickles[0]))
            return {str(value) for code, value, _ in codes if code.name in ("GLOBAL", "INST", "STACK_GLOBAL")}
    except Exception as error:  # a damaged archive can raise nearly anything
        if refused_by_system(error):
            raise
        raise _unreadable(path, str(error) or type(error).__name__) from error


def refused_by_system(error: Exception) -> bool:
    """Whether a file could not be read (no permission, a broken disk), as opposed to read and not understood.

    Libraries raise OSErrors of their own, without a number, and EINVAL when damage sends them before a file's start.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _unreadable(path: Path, reason: str) -> ValueError:
    reason = " ".join(reason.split())
    return ValueError(f"{path} is not a checkpoint or is damaged ({reason}); restore a copy of it or name another file")


def plain(value: object) -> object:
    """`value` in tensors on the CPU and Python's own types: NumPy numbers become numbers, paths strings.

    Raises TypeError for anything else.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if value is None or isinstance(value, (bool, np.bool_)):
        return value if value is None else bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, (str, Path, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {plain(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [plain(entry) for entry in value]
        return entries if isinstance(value, list) else tuple(entries)
    raise TypeError(
        f"a {type(value).__name__} cannot be stored in a checkpoint; give tensors, numbers, strings, lists or dicts"
    )
