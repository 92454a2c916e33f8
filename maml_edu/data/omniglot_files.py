"""Omniglot: 1,623 handwritten characters, 20 drawings each, as one small tensor.

Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program induction",
Science 2015. The two image archives are downloaded once, or read from a folder you name. Either way it is the
*pixels* that are verified, not the container, so a re-zipped or an unpacked copy of the data set is as good
as the official files.
"""

import hashlib
import io
import os
import secrets
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import torch
from PIL import Image
from tqdm import tqdm

from maml_edu.data.character_set import DRAWINGS, Characters

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
RESIZE = "105×105 to 28×28, LANCZOS on grey levels, ink = 1"


class Archive(NamedTuple):
    name: str  # of the zip file without its suffix, and of the folder inside
    characters: int
    md5: str  # of the official zip file: what a download must match
    pixels: str  # sha256 of the packed ink, drawings in sorted path order: what any copy must match


ARCHIVES = (
    Archive(
        "images_background",
        964,
        "68d2efa1b9178cc56df9314c21c6e718",
        "6699ae4df8ffac22aee7951d7cba6e421d3c2f9276990b84beacf5bef54348ea",
    ),
    Archive(
        "images_evaluation",
        659,
        "6b91aef0f799c5bb55b94e3f2daec811",
        "afb28aaea14406a6cf3c19d26de4ed60d69ccb7f5e6373afffc637b4784c039c",
    ),
)


class DataError(RuntimeError):
    """The data is not there, cannot be read, or is not what it should be."""


class DownloadError(DataError):
    """No file is at fault: there is none yet, and it could not be downloaded."""


def omniglot(root: str | Path | None = None, download: bool = True) -> Characters:
    """All of Omniglot at 28×28: the 964 background characters, then the 659 evaluation characters.

    root      a folder with images_background.zip and images_evaluation.zip, or with these unpacked, directly
              or in omniglot-py/ (torchvision's layout). If None, the environment variable MAML_EDU_DATA; if
              that is not set either, the two archives are downloaded into the cache folder (14 MB, once).
    download  False: use only what the cache folder holds. A folder you name is never downloaded into.

    The small images are kept in the cache folder, so the second call takes a moment.
    Raises DataError if a file is missing, damaged or not Omniglot, DownloadError if the network does not
    answer.
    """
    root = root or os.environ.get("MAML_EDU_DATA")
    folder = Path(root).expanduser() if root else cache_folder()
    # A folder you name must still hold its files, unchanged, so its cache is tied to them. What was
    # downloaded was verified when it was read, and the small images stay good even if the archives are
    # deleted.
    identity = [_identity(place) for place in _locate(folder)] if root else "downloaded"
    cache = cache_folder() / f"omniglot-28x28-{_key(identity)}.pt"

    characters = _load(cache)
    if characters is None:
        if download and not root:
            _download(folder)
        parts = [read_archive(place, archive) for place, archive in zip(_locate(folder), ARCHIVES, strict=True)]
        characters = Characters(
            images=torch.cat([part.images for part in parts]),
            names=[name for part in parts for name in part.names],
            alphabets=[alphabet for part in parts for alphabet in part.alphabets],
            source="omniglot",
        )
        _save(cache, characters)
    return characters


def cache_folder() -> Path:
    """Where downloads and prepared images are kept: MAML_EDU_CACHE, or the usual place of your system."""
    return Path(os.environ.get("MAML_EDU_CACHE") or pooch.os_cache("maml_edu")).expanduser()


# ---- Finding the archives


def _find(folder: Path, archive: Archive) -> Path | None:
    """The zip file or the unpacked folder of one archive, if `folder` holds it."""
    nested = folder / "omniglot-py"
    places = [inside / (archive.name + suffix) for inside in (folder, nested) for suffix in (".zip", "")]
    return next((place for place in places if place.exists()), None)


def _locate(folder: Path) -> list[Path]:
    """One place per archive. Raises DataError if one is missing."""
    places = [_find(folder, archive) for archive in ARCHIVES]
    missing = [archive.name for archive, place in zip(ARCHIVES, places, strict=True) if place is None]
    if missing:
        fault = f"lacks {' and '.join(missing)}"
        if not folder.is_dir():
            fault = "is a file, not a folder" if folder.exists() else "does not exist"
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


# ---- Reading an archive

# What zipfile, zlib and Pillow raise when a file is cut short, garbled or encrypted.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error)
_DAMAGE += (OSError, EOFError, SyntaxError, ValueError, RuntimeError)


def read_archive(place: Path, archive: Archive) -> Characters:
    """Read, verify and shrink one archive, zip file or folder; nothing is unpacked to disk.

    Raises DataError, naming the file, if it cannot be read or if its pixels are not those of `archive`.
    """
    remedy = f"Replace it with the official archive: {URL}{archive.name}.zip"
    chunk = 2 * DRAWINGS  # 40 · 105² bits are a whole number of bytes: packed chunks join without padding
    digest, images, name = hashlib.sha256(), [], "its list of files"
    try:
        with _opened(place) as (names, read):
            starts = range(0, len(names), chunk)
            for start in tqdm(starts, desc=f"preparing {archive.name}", leave=False, disable=None):
                ink = []
                for name in names[start : start + chunk]:
                    ink.append(_ink(read(name)))
                digest.update(np.packbits(ink))
                images += [_shrink(drawing) for drawing in ink]
    except _DAMAGE as error:
        fault = f"{type(error).__name__}: {error}"
        raise DataError(f"{place} is damaged at {name} ({fault}). {remedy}") from error

    folders = Counter(tuple(name.split("/")[-3:-1]) for name in names)  # (alphabet, character) -> drawings
    alphabets = {folder[:1] for folder in folders}
    if len(folders) != archive.characters or set(folders.values()) != {DRAWINGS} or () in alphabets:
        raise DataError(
            f"{place} holds {len(names):,} drawings of {len(folders):,} characters from {len(alphabets)} "
            f"alphabets; expected {archive.characters:,} characters with {DRAWINGS} drawings each, such as "
            f"{archive.name}/Greek/character01/0001_01.png. {remedy}"
        )
    if digest.hexdigest() != archive.pixels:
        raise DataError(
            f"{place} holds the right number of drawings, but their pixels are not those of "
            f"{archive.name} (sha256 {digest.hexdigest()[:8]}…, expected {archive.pixels[:8]}…). {remedy}"
        )
    part = archive.name.removeprefix("images_")
    return Characters(
        images=torch.from_numpy(np.stack(images)).unflatten(0, (-1, DRAWINGS)),
        names=[f"{part}/{alphabet}/{character}" for alphabet, character in folders],
        alphabets=[alphabet for alphabet, _ in folders],
        source="omniglot",
    )


@contextmanager
def _opened(place: Path):
    """Sorted names of the drawings, and a function that turns a name into the bytes of its PNG file."""
    if place.is_dir():
        paths = (path.relative_to(place.parent).as_posix() for path in place.rglob("*.png"))
        yield _drawings(paths), lambda name: (place.parent / name).read_bytes()
    else:
        with zipfile.ZipFile(place) as members:
            yield _drawings(members.namelist()), members.read


def _drawings(names) -> list[str]:
    # Sorted as strings: the same order on every machine. Files called "._name.png" are macOS's, not ours.
    return sorted(name for name in names if name.endswith(".png") and not name.split("/")[-1].startswith("."))


def _ink(png: bytes) -> np.ndarray:
    """bool [105, 105], True where there is ink. The files have white paper and black ink."""
    with Image.open(io.BytesIO(png)) as image:
        if image.size != (105, 105):
            raise ValueError(f"a drawing has {image.size[0]}×{image.size[1]} pixels, not 105×105")
        return np.asarray(image.convert("L")) < 128


def _shrink(ink: np.ndarray) -> np.ndarray:
    """uint8 [28, 28], ink = 255.

    The files are black and white (Pillow's mode "1"), and Pillow resizes such images by nearest neighbour
    whatever filter it is given. Only as a grey image (mode "L", from uint8) does LANCZOS mean LANCZOS.
    """
    grey = Image.fromarray(ink.astype(np.uint8) * 255)
    return np.asarray(grey.resize((28, 28), Image.Resampling.LANCZOS))


# ---- The cache of small images


def _identity(place: Path) -> list:
    """What changes when the file, or any file below the folder, is replaced: path, size, time of change."""
    place = place.resolve()
    # Strings rather than paths: an unpacked folder has 32,460 files, and this runs at every start.
    below = sorted(f"{folder}/{file}" for folder, _, files in os.walk(place) for file in files)
    status = [(file, os.stat(file)) for file in below or [str(place)]]
    return [(file, stat.st_size, stat.st_mtime_ns) for file, stat in status]


def _key(identity) -> str:
    recipe = (RESIZE, [archive.pixels for archive in ARCHIVES], identity)
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]


def _fingerprint(content: dict) -> str:
    digest = hashlib.sha256(content["images"].contiguous().numpy())
    digest.update(repr((content["names"], content["alphabets"])).encode())
    return digest.hexdigest()


def _load(path: Path) -> Characters | None:
    """The cached characters, or None where there are none that can be trusted."""
    try:
        if not path.is_file():
            return None
        content = torch.load(path, weights_only=True)
        if content.pop("sha256") != _fingerprint(content):
            raise ValueError("its checksum does not match")
        return Characters(**content, source="omniglot")
    except Exception as error:  # a garbled file can raise nearly anything, and the answer is always the same
        warnings.warn(f"The cached images {path} cannot be used ({error}); making them afresh.", stacklevel=3)
        return None


def _save(path: Path, characters: Characters) -> None:
    """Write the cache in one stroke, so that a reader or a second writer never meets half a file."""
    content = {"images": characters.images, "names": characters.names, "alphabets": characters.alphabets}
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content | {"sha256": _fingerprint(content)}, draft)
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        warnings.warn(
            f"Could not write to the cache folder {path.parent} ({error}). Omniglot is kept in memory only "
            "and prepared again next time; set MAML_EDU_CACHE to a folder you can write to.",
            stacklevel=3,
        )
    finally:
        if draft.is_file():
            draft.unlink()
