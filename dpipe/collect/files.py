"""Files of a source: which there are, and what each is now."""

import errno
import glob
import hashlib
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import fsspec

from dpipe.errors import InputError, SourceError

#: Size in bytes, and when or what was written: nanoseconds of a local file, a hash of the tag of an object.
Stamp = tuple[int, int]

#: Of a file of which neither is known.
UNSTAMPED: Stamp = (0, 0)

#: Seconds to wait before each new try of a remote read.
_WAITS = (0.5, 2.0)

_Result = TypeVar("_Result")


def find_files(source: Any, storage_options: dict[str, Any], ending: str) -> list[str]:
    """List the files that a source names, in order.

    Raises
    ------
    SourceError
        If nothing matches.
    """
    if not isinstance(storage_options, Mapping):  # not shown: it may be a key
        raise InputError(
            f"storage_options is a {type(storage_options).__name__}; it must be a dict for fsspec."
        )
    single = isinstance(source, str | os.PathLike)
    if not single and not isinstance(source, Sequence | set | frozenset):
        raise InputError(
            f"source is {source!r}; it must be a path, a folder, a glob or a URL, or a sequence of them."
        )
    found: list[str] = []
    for entry in [source] if single else list(source):
        found += _matches(os.fspath(entry), storage_options, ending)
    if not found:
        raise SourceError(
            f"No file matches {source!r} (looked from {os.getcwd()}). Give a path, a folder, a glob such as "
            f"'data/*{ending}', or a URL that fsspec knows."
        )
    return found


def _matches(entry: str, storage_options: dict[str, Any], ending: str) -> list[str]:
    if is_remote(entry):
        try:
            return retried(_remote_matches, entry, storage_options, ending, path=entry)
        except ImportError as err:
            raise SourceError(
                f"{entry} cannot be listed: {err}. Install what reads it, such as pip install 'dpipe[s3]' for s3://."
            ) from err
        except (OSError, TypeError, ValueError) as err:
            raise SourceError(
                f"{entry} cannot be listed: {type(err).__name__}: {scrubbed(err, storage_options)}. Check the address "
                "and what storage_options say."
            ) from err
    entry = os.path.expanduser(entry)
    if os.path.isdir(entry):
        return sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(entry)
            for name in names
            if name.endswith(ending)
        )
    return sorted(glob.glob(entry, recursive=True))


def _remote_matches(entry: str, storage_options: Mapping[str, Any], ending: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(entry, **storage_options)
    fs.invalidate_cache()  # file systems remember what they have listed before
    if any(char in entry for char in "*?["):
        return [fs.unstrip_protocol(name) for name in sorted(fs.glob(path))]
    if entry.endswith("/") or (not entry.endswith(ending) and fs.isdir(path)):
        return [fs.unstrip_protocol(name) for name in sorted(fs.find(path)) if name.endswith(ending)]
    return [entry]


def is_remote(path: str) -> bool:
    """Tell whether fsspec reads a file, and not the system."""
    return "://" in path


def stamp_of(path: str, storage_options: Mapping[str, Any], *, anew: bool = True) -> Stamp:
    """Give what tells a file from what it was before, as it is now.

    Without `anew` what a listing has just told of remote files is enough, and they are not asked one by one.

    Raises
    ------
    OSError
        If it is gone, or cannot be reached.
    """
    if not is_remote(path):
        status = os.stat(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            # opening a pipe waits for one who writes to it, for ever
            raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file")
        return status.st_size, status.st_mtime_ns
    return retried(_remote_stamp, path, storage_options, anew, path=path)


def check_unchanged(path: str, stamp: Stamp, storage_options: Mapping[str, Any]) -> None:
    """Refuse a file that is another one than was listed: old and new rows must not be mixed.

    Raises
    ------
    SourceError
        If it has changed, is gone, or cannot be reached.
    """
    try:
        now = stamp_of(path, storage_options)
    except FileNotFoundError as err:
        said = err.strerror or scrubbed(err, storage_options)
        raise SourceError(
            f"{path} has changed since it was listed: it is gone ({said}). Put it "
            "back, or list the source anew, and run again; the other files are not affected."
        ) from err
    except OSError as err:
        said = scrubbed(err.strerror or err, storage_options)
        raise SourceError(
            f"{path}: whether it has changed since it was listed cannot be told: {said}. Make it readable "
            "again, or list the source anew, and run again; the other files are not affected."
        ) from err
    if now != stamp:
        raise SourceError(
            f"{path} has changed since it was listed: it had {stamp[0]:,} bytes and has {now[0]:,}, "
            "or was written again. List the source anew, and run again; the other files are not affected."
        )


def _remote_stamp(path: str, storage_options: Mapping[str, Any], anew: bool) -> Stamp:
    fs, name = fsspec.core.url_to_fs(path, **storage_options)
    if anew:
        fs.invalidate_cache(name)
    return _described(fs.info(name))


def _described(info: Mapping[str, Any]) -> Stamp:
    # a listing and a question for one object tell the time in different ways, but the same tag
    keys = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
    known = str(next((info[key] for key in keys if info.get(key)), None))
    digest = hashlib.blake2b(known.encode(), digest_size=7).digest()
    return int(info.get("size") or 0), int.from_bytes(digest, "big")


def retried(function: Callable[..., _Result], *args: Any, path: str) -> _Result:
    """Call a function; where it reads a remote file and fails as networks do, some times more.

    Raises
    ------
    OSError
        The last one. What is missing or forbidden is raised at once.
    """
    if not is_remote(path):
        return function(*args)
    for wait in (*_WAITS, None):
        try:
            return function(*args)
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except Exception as err:
            if not _is_of_the_network(err):
                raise
            if wait is None:
                raise OSError(f"{type(err).__name__}: {err}") from err
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _is_of_the_network(err: Exception) -> bool:
    # clients of object stores have errors of their own, of no common class
    return isinstance(err, OSError) or type(err).__module__.partition(".")[0] not in ("builtins", "pyarrow")


def scrubbed(text: object, storage_options: Mapping[str, Any]) -> str:
    """Give a text in one line, without any of the secrets that open a file system.

    Examples
    --------
    >>> scrubbed("key hunter22 is wrong", {"key": "me", "client": {"secret": "hunter22"}})
    'key *** is wrong'
    """
    said = " ".join(str(text).split())
    for secret in sorted(_texts(storage_options), key=len, reverse=True):
        said = said.replace(secret, "***")
    return said


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    # shorter ones are no secrets, and would tear words
    return [value] if isinstance(value, str) and len(value) > 5 and "://" not in value else []
