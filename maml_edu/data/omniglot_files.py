"""Omniglot: 1,623 handwritten characters, 20 drawings each, as one small tensor.

Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program induction", Science 2015.
The two image archives are downloaded once, or read from a folder you name. Either way it is the *pixels* that are
verified, not the container, so a re-zipped or an unpacked copy of the data set is as good as the official files.
"""

import contextlib
import hashlib
import io
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pooch
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from maml_edu.data.character_set import DRAWINGS, Characters
from maml_edu.data.tensor_files import read_tensors, refused_by_system, write_tensors

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
RESIZE = "105×105 to 28×28, LANCZOS on grey levels, ink = 1"


class Archive(NamedTuple):
    name: str  # of the zip file without its suffix, and of the folder inside
    characters: int
    md5: str  # of the official zip file: what a download must match
    pixels: str  # sha256 of the packed ink, drawings in sorted path order: what any copy must match


_BACKGROUND = "68d2efa1b9178cc56df9314c21c6e718", "6699ae4df8ffac22aee7951d7cba6e421d3c2f9276990b84beacf5bef54348ea"
_EVALUATION = "6b91aef0f799c5bb55b94e3f2daec811", "afb28aaea14406a6cf3c19d26de4ed60d69ccb7f5e6373afffc637b4784c039c"
ARCHIVES = (Archive("images_background", 964, *_BACKGROUND), Archive("images_evaluation", 659, *_EVALUATION))


class DataError(RuntimeError):
    """The data is not there, cannot be read, or is not what it should be."""


class DownloadError(DataError):
    """No file is at fault: there is none yet, and it could not be downloaded."""


def omniglot(root: str | Path | None = None, download: bool = True, verify: bool = False) -> Characters:
    """All of Omniglot at 28×28: the 964 background characters, then the 659 evaluation characters.

    root      a folder with images_background.zip and images_evaluation.zip, or with these unpacked, directly or in
              omniglot-py/ (torchvision's layout). If None, the environment variable MAML_EDU_DATA; if that is not
              set either, the two archives are downloaded into the cache folder (14 MB, once).
    download  False: use only what the cache folder holds. A folder you name is never downloaded into.
    verify    True: read the archives again, although the small images are there.

    What is read is verified pixel by pixel, and the small images are kept in the cache folder, so the second call takes
    a moment. Raises DataError if a file is missing, unreadable, damaged or not Omniglot, DownloadError if the network
    does not answer.
    """
    root = root or os.environ.get("MAML_EDU_DATA")
    folder = Path(root).expanduser() if root else cache_folder()
    if root:
        _locate(folder)  # a folder you name must hold the archives; downloaded ones may be deleted
    recipe = repr((RESIZE, [archive.pixels for archive in ARCHIVES]))
    cache = cache_folder() / f"omniglot-28x28-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.pt"

    characters = None if verify else _load(cache)
    if characters is None:
        if download and not root:
            _download(folder)
        first, second = (read_archive(place, archive) for place, archive in zip(_locate(folder), ARCHIVES))
        images = torch.cat([first.images, second.images])
        characters = Characters(images, first.names + second.names, first.alphabets + second.alphabets, "omniglot")
        _save(cache, characters)
    return characters


def cache_folder() -> Path:
    """Where downloads and prepared images are kept: MAML_EDU_CACHE, or the usual place of your system."""
    return Path(os.environ.get("MAML_EDU_CACHE") or pooch.os_cache("maml_edu")).expanduser()


def _find(folder: Path, archive: Archive) -> Path | None:
    """The zip file or the unpacked folder of one archive, if `folder` holds it."""
    inside = (folder, folder / "omniglot-py")
    places = (parent / f"{archive.name}{suffix}" for parent in inside for suffix in (".zip", ""))
    return next((place for place in places if os.path.exists(place)), None)


def _locate(folder: Path) -> list[Path]:
    """One place per archive. Raises DataError if one is missing."""
    places = [place for archive in ARCHIVES if (place := _find(folder, archive))]
    missing = [archive.name for archive in ARCHIVES if not _find(folder, archive)]
    if missing:
        fault = f"lacks {' and '.join(missing)}"
        if not os.path.isdir(folder):
            fault = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        elif not os.access(folder, os.R_OK | os.X_OK):
            fault = "cannot be read: permission denied"
        raise DataError(
            f"The Omniglot folder {folder} {fault}. Expected in it, or in its folder omniglot-py: "
            f"{' and '.join(archive.name for archive in ARCHIVES)}, as .zip files or unpacked. Point root or "
            "MAML_EDU_DATA at a folder that holds both, or give neither and let them be downloaded."
        )
    return places


def _download(folder: Path) -> None:
    """Fetch the archives that `folder` does not hold yet, each checked against its official md5 sum."""
    for archive in ARCHIVES:
        if _find(folder, archive):
            continue
        url = f"{URL}{archive.name}.zip"
        # Seconds to connect, and seconds between two packets: behind a firewall, fail soon rather than hang.
        downloader = pooch.HTTPDownloader(progressbar=True, timeout=(4, 20))
        try:
            pooch.retrieve(url, f"md5:{archive.md5}", f"{archive.name}.zip", folder, downloader=downloader)
        except (OSError, ValueError) as error:  # no network, nowhere to write, or not the file asked for
            raise DownloadError(
                f"Omniglot could not be downloaded from {url} ({type(error).__name__}: {error}).\n"
                f"Three ways on: put {' and '.join(f'{a.name}.zip' for a in ARCHIVES)} into {folder}; or set "
                "MAML_EDU_DATA to a folder that holds them, zipped or unpacked; or work with synthetic "
                'characters, which need no download: characters("glyphs").'
            ) from error


LARGEST_DRAWING = 1 << 16  # bytes of a PNG file; the official ones have a few hundred


def read_archive(place: Path, archive: Archive) -> Characters:
    """Read, verify and shrink one archive, zip file or folder; nothing is unpacked to disk.

    Raises DataError, naming the file, if it cannot be read or if its pixels are not those of `archive`.
    """
    remedy = f"Replace it with the official archive: {URL}{archive.name}.zip"
    chunk = 2 * DRAWINGS  # 40 · 105² bits are a whole number of bytes: packed chunks join without padding
    digest, images, name = hashlib.sha256(), [], "its list of files"
    try:
        with _opened(place) as (names, open_drawing):
            folders = Counter(tuple(name.split("/")[-3:-1]) for name in names)  # (alphabet, character) -> drawings
            alphabets = {folder[:1] for folder in folders}
            if len(folders) != archive.characters or set(folders.values()) != {DRAWINGS} or () in alphabets:
                raise DataError(
                    f"{place} holds {len(names):,} drawings of {len(folders):,} characters from {len(alphabets)} "
                    f"alphabets; expected {archive.characters:,} characters with {DRAWINGS} drawings each, such as "
                    f"{archive.name}/Greek/character01/0001_01.png. {remedy}"
                )
            for start in tqdm(range(0, len(names), chunk), f"preparing {archive.name}", leave=False, disable=None):
                ink = []
                for name in names[start : start + chunk]:
                    with open_drawing(name) as file:
                        ink.append(_ink(file.read(LARGEST_DRAWING + 1)))  # no more is unpacked, whatever is there
                digest.update(np.packbits(ink).tobytes())
                images += [_shrink(drawing) for drawing in ink]
    except DataError:
        raise
    except Exception as error:  # a damaged archive can raise nearly anything
        if refused_by_system(error):
            raise DataError(
                f"{place} cannot be read at {name} ({error}). Make it readable, or point MAML_EDU_DATA at another copy."
            ) from error
        raise DataError(f"{place} is damaged at {name} ({type(error).__name__}: {error}). {remedy}") from error
    if digest.hexdigest() != archive.pixels:
        raise DataError(
            f"{place} holds the right number of drawings, but their pixels are not those of {archive.name} "
            f"(sha256 {digest.hexdigest()[:8]}…, expected {archive.pixels[:8]}…). {remedy}"
        )
    small = torch.from_numpy(np.stack(images)).unflatten(0, (-1, DRAWINGS))
    names = [f"{archive.name.removeprefix('images_')}/{alphabet}/{character}" for alphabet, character in folders]
    return Characters(small, names, [alphabet for alphabet, _ in folders], "omniglot")


@contextlib.contextmanager
def _opened(place: Path) -> Iterator[tuple[list[str], Callable[[str], IO[bytes]]]]:
    """Sorted names of the drawings, and what opens one of them."""
    if place.is_dir():

        def refuse(error: OSError) -> None:
            raise error

        files = (Path(folder, file) for folder, _, files in os.walk(place, onerror=refuse) for file in files)
        names = (path.relative_to(place.parent).as_posix() for path in files if path.is_file())
        yield _drawings(names), lambda name: open(place.parent / name, "rb")
    elif place.is_file():
        with zipfile.ZipFile(place) as archive:
            yield _drawings(archive.namelist()), archive.open
    else:
        raise DataError(f"{place} is neither a file nor a folder. Point MAML_EDU_DATA at a folder with the archives.")


def _drawings(names: Iterable[str]) -> list[str]:
    # Sorted as strings: the same order on every machine. Files called "._name.png" are macOS's, not ours.
    return sorted(name for name in names if name.endswith(".png") and not name.split("/")[-1].startswith("."))


def _ink(png: bytes) -> np.ndarray:
    """bool [105, 105], True where there is ink. The files have white paper and black ink."""
    if len(png) > LARGEST_DRAWING:
        raise ValueError(f"a drawing has more than {LARGEST_DRAWING:,} bytes")
    with Image.open(io.BytesIO(png)) as image:
        if image.size != (105, 105):
            raise ValueError(f"a drawing has {image.size[0]}×{image.size[1]} pixels, not 105×105")
        return np.asarray(image.convert("L")) < 128


def _shrink(ink: np.ndarray) -> np.ndarray:
    """uint8 [28, 28], ink = 255.

    Pillow resizes black and white images (mode "1", as in the files) by nearest neighbour whatever filter it is given.
    Only as a grey image (mode "L", from uint8) does LANCZOS mean LANCZOS.
    """
    grey = Image.fromarray(ink.astype(np.uint8) * 255)
    return np.asarray(grey.resize((28, 28), Image.Resampling.LANCZOS))


def _load(path: Path) -> Characters | None:
    """The cached characters, or None where there are none."""
    if not os.path.exists(path):
        return None
    try:
        content = read_tensors(path)
        images, names, alphabets = (content.get(part) for part in ("images", "names", "alphabets"))
        if not (isinstance(images, Tensor) and isinstance(names, list) and isinstance(alphabets, list)):
            raise ValueError("it holds something else")
        return Characters(images, names, alphabets, source="omniglot")
    except (OSError, ValueError) as error:
        warnings.warn(f"The cached images {path} cannot be used ({error}); making them afresh.", stacklevel=3)
        return None


def _save(path: Path, characters: Characters) -> None:
    try:
        write_tensors(path, {name: value for name, value in characters._asdict().items() if name != "source"})
    except OSError as error:
        warnings.warn(
            f"Could not write to the cache folder {path.parent} ({error}). Omniglot is kept in memory only "
            "and prepared again next time; set MAML_EDU_CACHE to a folder you can write to.",
            stacklevel=3,
        )
