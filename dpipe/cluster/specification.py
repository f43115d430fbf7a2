"""What a cluster is, in few words: the kinds there are, the keys each takes, and how they are read and checked.

A specification is data. It is read by a loader that makes plain values only, and nothing in it is run here; the lines
under `prologue` go into job scripts, which the nodes of the cluster run.
"""

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dask.utils import parse_timedelta
from distributed import Client

from dpipe.errors import InputError
from dpipe.sizes import MIB, parse_bytes

#: Systems that queue jobs, by the names of their commands' families.
QUEUES = ("slurm", "pbs", "sge", "lsf", "htcondor", "oar")
_WORKERS = frozenset({"workers", "cores", "memory", "scratch"})
_APART = _WORKERS | {
    "tls",
    "folder",
    "python",
    "prologue",
    "interface",
    "scheduler_interface",
    "attempts",
    "per_job",
}
_DRIVER = frozenset({"driver_cores", "driver_memory", "driver_walltime", "driver_directives"})
_QUEUED = _APART | _DRIVER | {"walltime", "queue", "account", "directives"}
#: The keys of each kind, beside `kind` itself.
KEYS: dict[str, frozenset[str]] = {
    "local": _WORKERS | {"threads"},
    "address": frozenset({"address", "ca", "certificate", "key", "tls"}),
    **dict.fromkeys(("slurm", "lsf"), _QUEUED),
    **dict.fromkeys(("pbs", "sge", "oar"), _QUEUED | {"resource"}),
    "htcondor": _QUEUED - {"queue"} | {"resource"},  # its jobs ask for what they need, and name no queue
    "ssh": _APART | {"hosts", "directives"},
    "mpi": frozenset({"cores", "memory", "scratch", "interface", "tls"}),
    "kubernetes": frozenset({"workers", "cores", "memory", "image", "namespace", "options", "tls"}),
    "cuda": _WORKERS | {"options"},
}
#: What Dask's own communication speaks.
_SCHEMES = ("tcp", "tls", "ucx", "ws", "wss")
#: Where a name is looked up that is not a path; the environment may name another folder.
FOLDER_VARIABLE = "DPIPE_CLUSTERS"


@dataclass(frozen=True, kw_only=True)
class Specification:
    """The keys of a specification; `Cluster` explains them."""

    kind: str = field(kw_only=False)
    workers: int | tuple[int, int] | None = None
    cores: int = 1
    memory: int | str | None = None
    per_job: int = 1
    walltime: int | str | None = None
    scratch: str | None = None
    queue: str | None = None
    account: str | None = None
    resource: str | None = None
    directives: tuple[str, ...] = ()
    python: str | None = None
    prologue: tuple[str, ...] = ()
    interface: str | None = None
    scheduler_interface: str | None = None
    folder: str | None = None
    attempts: int = 3
    driver_cores: int = 1
    driver_memory: int | str = "2 GiB"
    driver_walltime: int | str | None = None
    driver_directives: tuple[str, ...] = ()
    threads: bool = False
    address: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    tls: bool | None = None
    hosts: tuple[str, ...] = ()
    image: str | None = None
    namespace: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = field(default="", repr=False)
    """File that it was read from, for messages."""

    def __post_init__(self) -> None:
        """Check every key and bring the values to one form."""
        if not isinstance(self.kind, str) or self.kind not in KEYS:
            self._refuse("kind", f"is {self.kind!r}; it must be one of {', '.join(KEYS)}")
        self._check_keys()
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is None:
                continue
            try:
                object.__setattr__(self, name, check(value))
            except ValueError as err:
                self._refuse(name, f"is {value!r}; {err}", err)
        self._check_together()

    def _check_keys(self) -> None:
        allowed = KEYS[self.kind]
        for each in dataclasses.fields(self):
            if each.name in ("kind", "source") or each.name in allowed or each.name.startswith("_"):
                continue
            default = each.default
            if default is dataclasses.MISSING:
                default = {}
            if getattr(self, each.name) != default:
                self._refuse(
                    each.name,
                    f"means nothing for kind {self.kind!r}, which takes {', '.join(sorted(allowed))}",
                )

    def _check_together(self) -> None:
        elsewhere = self.kind in QUEUES or self.kind in ("ssh", "mpi")
        if elsewhere and self.scratch is not None and not self.scratch.startswith(("/", "$")):
            self._refuse(
                "scratch",
                f"is {self.scratch!r}; each node must know where that is: begin with / or with a variable, as in "
                "/scratch or $TMPDIR",
            )
        if self.kind == "address" and not self.address:
            self._refuse(
                "address", "is missing; give that of a running scheduler, such as tls://10.0.0.5:8786"
            )
        if self.kind == "ssh" and not self.hosts:
            self._refuse("hosts", "is missing; list the machines to start workers on")
        if self.kind == "ssh":
            try:
                shlex.split("\n".join(self.directives))
            except ValueError as err:
                self._refuse("directives", f"is {list(self.directives)}; as options of ssh: {err}", err)
        if self.kind in QUEUES and self.memory is None:
            self._refuse(
                "memory", f'is missing; {self.kind} must be told what a worker needs, such as "8 GiB"'
            )
        if self.kind in ("mpi", "kubernetes") and self.tls is not False:
            self._refuse(
                "tls",
                f"must be false: kind {self.kind!r} has no certificates to hand out",
            )
        files = [name for name in ("ca", "certificate", "key") if getattr(self, name)]
        if files and len(files) < 3:
            self._refuse(files[0], "needs ca, certificate and key together")
        if self.kind == "address" and str(self.address).startswith("tls://") and not files:
            self._refuse("ca", "is missing; a tls:// address needs ca, certificate and key, each a PEM file")

    def _refuse(self, name: str, what: str, err: Exception | None = None) -> None:
        where = f" of {self.source}" if self.source else ""
        raise InputError(f"Key {name!r}{where} {what.rstrip('.')}.") from err

    @property
    def started(self) -> Client | None:
        """Client of the cluster while it runs; a specification alone never does."""
        return None

    @property
    def n_workers(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        if self.workers is None:
            n = len(self.hosts) or 1
            return n, n
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

    @property
    def memory_nbytes(self) -> int | None:
        """Memory of a worker, in bytes."""
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def walltime_s(self) -> int | None:
        """Wall time of a job, in seconds."""
        return None if self.walltime is None else int(self.walltime)


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("it must be a whole number, at least 1")
    return value


def _workers(value: Any) -> int | tuple[int, int]:
    if isinstance(value, tuple | list):
        if len(value) != 2 or _positive(value[0]) > _positive(value[1]):
            raise ValueError("an adaptive size is two whole numbers, the fewest and the most, such as [1, 8]")
        return value[0], value[1]
    return _positive(value)


def _size(value: Any) -> int:
    nbytes = parse_bytes(value)
    if nbytes < MIB:
        raise ValueError('that is less than 1 MiB; name the unit, as in "16 GiB"')
    return nbytes


def _text(value: Any) -> str:
    # a line break would end the directive it stands in, and begin a line of the caller's in a job script
    if not isinstance(value, str | os.PathLike) or not str(value).strip() or "\n" in str(value):
        raise ValueError("it must be one line of text")
    return str(value)


def _word(value: Any) -> str:
    text = _text(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)
    if not re.fullmatch(r"[\w.,:@/+=*-]+", text):
        raise ValueError("it must be one word of letters, digits and . , : @ / + = * -")
    return text


def _address(value: Any) -> str:
    address = _text(value)
    _word(address.replace("[", "").replace("]", ""))  # those of an IPv6 address
    scheme, separator, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    reached = scheme in _SCHEMES and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not separator or not (reached or (scheme == "inproc" and rest.count("/") == 2)):
        raise ValueError(
            f"it must be SCHEME://HOST:PORT with one of {', '.join(_SCHEMES)}, such as tls://10.0.0.5:8786"
        )
    return address


def _path(value: Any) -> str:
    path = os.path.expanduser(_text(value))
    # the nodes' shells read it, too: $TMPDIR is theirs to know, commands are not
    if not re.fullmatch(r"[\w.,:@/+=${}~-]+", path):
        raise ValueError("it must be a path without spaces, quotes or shell commands; $NAME is allowed")
    return path


def _lines(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, tuple | list):
        raise ValueError("it must be a list of lines")
    return tuple(_text(each) for each in value)


def _hosts(value: Any) -> tuple[str, ...]:
    hosts = tuple(_word(each) for each in _lines(value))
    if any(each.startswith("-") for each in hosts):  # ssh would take it for an option
        raise ValueError("the name of a machine does not begin with -")
    return hosts


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("it must be keys and values")
    return dict(value)


def seconds(value: Any) -> int:
    """Read a duration: seconds, "30 min", "2h", "HH:MM:SS" or "D-HH:MM:SS".

    Raises
    ------
    ValueError
        If it is none of them, or less than a minute, which queues do not count.

    Examples
    --------
    >>> seconds("1-02:00:00"), seconds("00:10:00"), seconds("30 min"), seconds(90)
    (93600, 600, 1800, 90)
    """
    wrong = 'it must be a duration of at least 60 s, such as "02:00:00", "1-12:00:00" or "30 min"'
    text = str(value).strip()
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))", text)
    try:
        if isinstance(value, bool):
            raise ValueError(wrong)
        if clock:
            days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
            total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
        else:
            text = re.sub(r"(?i)\s*min$", "m", text)
            total = int(parse_timedelta(value if isinstance(value, int) else text, default="s"))
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(wrong) from err
    if total < 60:
        raise ValueError(wrong)
    return total


def clock(duration: int) -> str:
    """Write seconds as hours, minutes and seconds, as all queues read them.

    Examples
    --------
    >>> clock(93600)
    '26:00:00'
    """
    return f"{duration // 3600:02d}:{duration // 60 % 60:02d}:{duration % 60:02d}"


_CHECKS: dict[str, Any] = {
    **dict.fromkeys(("cores", "per_job", "attempts", "driver_cores"), _positive),
    "workers": _workers,
    **dict.fromkeys(("memory", "driver_memory"), _size),
    **dict.fromkeys(("walltime", "driver_walltime"), seconds),
    **dict.fromkeys(("scratch", "python", "folder", "ca", "certificate", "key"), _path),
    **dict.fromkeys(("queue", "account", "interface", "scheduler_interface", "image", "namespace"), _word),
    "address": _address,
    "resource": _text,
    **dict.fromkeys(("directives", "driver_directives", "prologue"), _lines),
    "hosts": _hosts,
    **dict.fromkeys(("tls", "threads"), _flag),
    "options": _mapping,
}


def find_specification(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the keys of a specification from a file, or find it by its name.

    Parameters
    ----------
    name : str or path
        A YAML file, the address of a scheduler, ``local``, or the name of a file ``NAME.yaml`` in the folder that
        ``DPIPE_CLUSTERS`` names, by default ``~/.config/dpipe/clusters``.

    Returns
    -------
    dict
        Keys and values as they stand there, and the file under ``source``.

    Raises
    ------
    InputError
        If there is no such file, or it holds anything but keys and values that a specification has.
    """
    text = os.fspath(name)
    if "://" in text:
        return {"kind": "address", "address": text}
    path = Path(text).expanduser()
    folder = Path(os.environ.get(FOLDER_VARIABLE) or "~/.config/dpipe/clusters").expanduser()
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        path = folder / f"{text}.yaml"
        if not path.is_file() and text in ("local", "cuda"):
            return {"kind": text}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise InputError(
            f"There is no cluster specification {text!r}: {path} cannot be read ({err.strerror}). Give a YAML file, an "
            f"address such as tcp://127.0.0.1:8786, local, or the name of a file in {folder}."
        ) from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise InputError(
            f"{path} is not a plain YAML file: {' '.join(str(err).split())}. Write one key and value a line."
        ) from err
    return {**checked_keys(found, str(path)), "source": str(path)}


def checked_keys(found: Any, source: str) -> dict[str, Any]:
    """Check that a file holds the keys of a specification and nothing else."""
    if not isinstance(found, dict):
        raise InputError(f"{source} holds {type(found).__name__}; a specification is keys and values.")
    known = sorted({"kind"}.union(*KEYS.values()))
    for name in found:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{source} has no key {name!r}; there are {', '.join(known)}.{hint}")
    if "kind" not in found:
        raise InputError(f"Key 'kind' of {source} is missing; it must be one of {', '.join(KEYS)}.")
    return found
