"""Fixtures of the tests of Omniglot: a folder with two tiny archives, and a network that must not or cannot be used."""

import hashlib
import importlib
import socket

import numpy as np
import pooch
import pytest
from support.tiny_omniglot import TINY, drawings, files_of, write_zip

data = importlib.import_module("maml_edu.data.omniglot_files")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with two tiny archives, taken for the real ones; an empty cache; MAML_EDU_DATA not set."""
    folder = tmp_path / "data"
    folder.mkdir()
    archives = []
    for name, characters in TINY.items():
        write_zip(folder / f"{name}.zip", files_of(name))
        ink = np.stack([ink for _, ink in sorted(drawings(name).items())])
        pixels = hashlib.sha256(np.packbits(ink).tobytes()).hexdigest()  # all at once, unlike the module
        md5 = hashlib.md5((folder / f"{name}.zip").read_bytes()).hexdigest()
        archives.append(data.Archive(name, len(characters), md5, pixels))
    monkeypatch.setattr(data, "ARCHIVES", tuple(archives))
    monkeypatch.setenv("MAML_EDU_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAML_EDU_DATA", raising=False)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def no_download(monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("tried to download")

    monkeypatch.setattr(pooch, "retrieve", fail)
