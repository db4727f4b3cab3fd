"""Where models lie: files, globs, folders, and URLs of any file system that fsspec knows (`s3://`, `gs://` ...)."""

from __future__ import annotations

import contextlib
import glob
import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from repfuse.errors import BadInputError
from repfuse.model import external, model_io


class Place(NamedTuple):
    """Where one model lies.

    Attributes:
        name: A path or a URL.
        relative: Its path below what the user's pattern fixes, with slashes: `a/b.onnx` for `models/**/*.onnx`.
    """

    name: str
    relative: str


def expand(patterns: Iterable[str]) -> list[Place]:
    """All models that paths, globs (`**` too), folders and URLs stand for, each once, in order.

    A file that is named outright is taken for granted; whoever opens it tells if it is not there.

    Raises:
        BadInputError: A glob or a folder holds no model, or there is no such file system.
    """
    found: dict[str, Place] = {}
    for pattern in patterns:
        places = _urls(pattern) if is_url(pattern) else _files(pattern)
        if not places:
            raise BadInputError(f"{pattern}: there is no model here; nothing matches")
        for place in places:
            found.setdefault(place.name, place)
    return list(found.values())


def is_url(name: str) -> bool:
    """Whether a name is a URL, for fsspec to open."""
    return "://" in name


@contextlib.contextmanager
def local(name: str) -> Iterator[Path]:
    """The path of a model; of one at a URL, that of a copy (with its external data) which is gone afterwards.

    Raises:
        BadInputError: The URL cannot be read.
    """
    if not is_url(name):
        yield Path(name)
        return
    system, path = _system(name)
    with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
        copy = Path(folder, posixpath.basename(path))
        with _explained(name, "read"):
            system.get_file(path, str(copy))
            for data in external.names(model_io.structure(copy)):
                if PurePath(data).name == data:  # what lies elsewhere is refused when the model is read
                    system.get_file(posixpath.join(posixpath.dirname(path), data), str(copy.with_name(data)))
        yield copy


@contextlib.contextmanager
def target(name: str) -> Iterator[Path]:
    """A path to write at; for a URL, what was written there is uploaded at the end, the model after its data.

    Raises:
        BadInputError: The URL cannot be written.
    """
    if not is_url(name):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        yield Path(name)
        return
    system, path = _system(name)
    with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
        model = Path(folder, posixpath.basename(path))
        yield model
        with _explained(name, "written"):
            system.makedirs(posixpath.dirname(path), exist_ok=True)
            for file in sorted(Path(folder).iterdir(), key=lambda file: file == model):
                system.put_file(str(file), posixpath.join(posixpath.dirname(path), file.name))


def join(folder: str, relative: str) -> str:
    """A path or URL below a folder."""
    return f"{folder.rstrip('/')}/{relative}" if is_url(folder) else str(Path(folder, relative))


def exists(name: str) -> bool:
    """Whether there is such a file."""
    if not is_url(name):
        return Path(name).is_file()
    system, path = _system(name)
    return bool(system.isfile(path))


def _files(pattern: str) -> list[Place]:
    if Path(pattern).is_dir():
        return _below(pattern, sorted(map(str, Path(pattern).rglob("*.onnx"))))
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [Place(pattern, Path(pattern).name)]
    matches = [name for name in sorted(_glob(pattern)) if Path(name).is_file()]
    return _below(str(_fixed(PurePath(pattern))), matches)


def _glob(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute pattern)


def _below(folder: str, names: Sequence[str]) -> list[Place]:
    return [Place(name, PurePath(name).relative_to(folder).as_posix()) for name in names]


def _fixed(pattern: PurePath) -> PurePath:
    """The part of a glob before its first wildcard."""
    parents = reversed(pattern.parents)
    return [parent for parent in parents if not glob.has_magic(str(parent))][-1]


def _urls(pattern: str) -> list[Place]:
    system, path = _system(pattern)
    with _explained(pattern, "listed"):
        if glob.has_magic(path):
            fixed = str(_fixed(PurePosixPath(path)))
            matches = sorted(name for name in system.glob(path) if system.isfile(name))
        elif system.isdir(path):
            fixed, matches = path, sorted(name for name in system.find(path) if name.endswith(".onnx"))
        else:
            return [Place(pattern, posixpath.basename(path))]
    return [Place(system.unstrip_protocol(name), posixpath.relpath(name, fixed)) for name in matches]


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415
    except ImportError as error:
        raise BadInputError(f"{url}: URLs need fsspec; pip install 'repfuse[fsspec]'") from error
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise BadInputError(f"{url}: no such file system: {error}") from error
    return system, path


@contextlib.contextmanager
def _explained(url: str, verb: str) -> Iterator[None]:
    """Turn what a file system raises into our errors; each has exceptions of its own."""
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise BadInputError(f"{url}: cannot be {verb}: {reason.splitlines()[0]}") from error
