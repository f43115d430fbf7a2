"""The command line: a thin shell over the public names.

dpipe run recipes.taxi_tips rows=2000000 --memory 2GiB
dpipe plan recipes.taxi_tips
dpipe predict runs/taxi-tips/bundle 'new/*.parquet' scored/
dpipe report runs/taxi-tips
dpipe estimators
dpipe cluster check slurm.yaml
dpipe submit recipes.taxi_tips --cluster slurm.yaml
"""

import argparse
import contextlib
import difflib
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpipe.cluster import submission
from dpipe.cluster.check import check_cluster
from dpipe.cluster.cluster import Cluster
from dpipe.deploy.batch import score_files
from dpipe.errors import DpipeError, InputError
from dpipe.families.catalog import estimators
from dpipe.monitor.record import RunRecord
from dpipe.monitor.report import write_report
from dpipe.monitor.session import Session
from dpipe.outputs.manifest import verify
from dpipe.pipeline.pipeline import Pipeline
from dpipe.sizes import counted

_RECIPE_HELP = (
    "a recipe: the module of a function of the same name, such as recipes.taxi_tips, or module:function. "
    "The current folder is searched, too"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; give the exit status: 0 done, 1 an error that is explained, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
        sys.stdout.flush()
        return 0
    except DpipeError as err:
        print(f"dpipe: {err}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("dpipe: interrupted", file=sys.stderr)
        return 130


class _CommandParser(argparse.ArgumentParser):
    """Takes options anywhere among the arguments, as Unix commands do."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._mixing:  # argparse calls this method again for each of its two rounds
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            known, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False
        if unknown:  # said here, the usage that is shown is this command's
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dpipe",
        description="Write plain scikit-learn. Run it on data larger than memory. Get plain scikit-learn back.",
        epilog="'dpipe COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"dpipe {version('dpipe')}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    _add_run(commands)
    _add_plan(commands)
    _add_predict(commands)
    _add_report(commands)
    _add_verify(commands)
    _add_estimators(commands)
    _add_cluster(commands)
    _add_submit(commands)
    _add_submissions(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="carry out a recipe, and leave its results, a report and a bundle in its workdir",
        description="Carry out a recipe, and leave its results, a report and a bundle in its workdir.",
        epilog="example: dpipe run recipes.taxi_tips rows=2000000 --memory 2GiB",
    )
    _add_recipe(run)
    run.add_argument("--quiet", action="store_true", help="no progress bars and no dashboard address")
    run.set_defaults(command=_run)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="tell what a run would do: passes, bytes, projected memory",
        description="Tell what a run of a recipe would do: its stages, the passes of each model and why they "
        "are needed, bytes read and projected peak memory. Reads metadata only.",
        epilog="example: dpipe plan recipes.taxi_tips rows=2000000 --memory 2GiB",
    )
    _add_recipe(plan)
    plan.set_defaults(command=_plan)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=_RECIPE_HELP)
    parser.add_argument(
        "settings",
        metavar="KEY=VALUE",
        nargs="*",
        default=(),
        help="arguments of the recipe function, such as rows=2000000",
    )
    _add_resources(parser)


def _add_resources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", metavar="SIZE", help="memory budget of the whole run, such as 2GiB")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="blocks to work on at a time (default: one a processor)"
    )
    parser.add_argument(
        "--cluster",
        metavar="FILE|NAME",
        help="where to run: a cluster specification, an address, or a name (default: this machine)",
    )


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="score Parquet files with a deployed model; finished files are not done again",
        description="Score Parquet files with a deployed model: one output file for each input file, written "
        "whole or not at all. Run it again after an interruption, and only what is missing is done.",
        epilog="example: dpipe predict runs/taxi-tips/bundle 'new/*.parquet' scored/ "
        "--trust recipes.ride_features.ride_features",
    )
    predict.add_argument("bundle", metavar="BUNDLE", help="folder that a run has deployed")
    predict.add_argument(
        "paths", metavar="PATH", nargs="+", help="input files, globs or folders, then the output folder"
    )
    predict.add_argument(
        "--method",
        metavar="NAME",
        help="predict, predict_proba or decision_function (default: probabilities)",
    )
    predict.add_argument(
        "--keep",
        metavar="COLUMN",
        action="append",
        default=[],
        help="copy a column to the output; may be repeated",
    )
    predict.add_argument(
        "--trust",
        metavar="NAME",
        action="append",
        default=[],
        help="allow a function or class that the bundle's model names, such as recipes.ride_features.ride_features",
    )
    predict.add_argument("--quiet", action="store_true", help="no progress bars and no dashboard address")
    _add_resources(predict)
    predict.set_defaults(command=_predict)


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="write the report of a run as one HTML page, and print its address",
        description="Write the report of a run as one HTML page that opens offline, and print its address.",
        epilog="example: dpipe report runs/taxi-tips",
    )
    report.add_argument("workdir", metavar="DIR", help="workdir of a run")
    report.set_defaults(command=_report)


def _add_estimators(commands: Any) -> None:
    listing = commands.add_parser(
        "estimators",
        help="list what can be fitted block by block, how, and in how many passes",
        description="List the scikit-learn estimators that can be fitted block by block, how, in how many "
        "passes, and what 'the same answer' means for each.",
    )
    listing.set_defaults(command=_estimators)


def _add_cluster(commands: Any) -> None:
    check = commands.add_parser(
        "cluster",
        help="check a cluster specification before it is used: dpipe cluster check FILE",
        description="Print the job script of a cluster specification, compare it with what the queue offers, and let "
        "one tiny job look at a node: Python, packages, scratch, network. Says what to change; the exit status is 1 if "
        "anything needs to be.",
        epilog="example: dpipe cluster check slurm.yaml",
    )
    check.add_argument("action", choices=["check"], help="what to do")
    check.add_argument("cluster", metavar="FILE|NAME", help="a cluster specification")
    check.set_defaults(command=_check)


def _add_submit(commands: Any) -> None:
    run = commands.add_parser(
        "submit",
        help="carry out a recipe in jobs, its driver included, and come back at once",
        description="Submit a recipe: its driver is a job, too, which submits the jobs of its workers, and which "
        "submits itself again before its wall time is over.",
        epilog="example: dpipe submit recipes.taxi_tips rows=2000000 --cluster slurm.yaml",
    )
    _add_recipe(run)
    run.set_defaults(command=_submit)


def _add_submissions(commands: Any) -> None:
    for name, says, command in (
        ("status", "tell what submitted runs are at", _status),
        ("logs", "print what the driver of a submitted run has printed", _logs),
        ("cancel", "end a submitted run", _cancel),
        ("resume", "submit the driver of a run again that was lost, has failed or was cancelled", _resume),
    ):
        parser = commands.add_parser(name, help=says, description=f"{says.capitalize()}.")
        parser.add_argument(
            "name",
            metavar="NAME",
            nargs="?" if name == "status" else None,
            help="as dpipe submit has printed it" + (" (default: all)" if name == "status" else ""),
        )
        parser.set_defaults(command=command)


def _check(arguments: argparse.Namespace) -> None:
    found = check_cluster(Cluster.read(arguments.cluster))
    print(found)
    if not found.ok:
        raise SystemExit(1)


def _submit(arguments: argparse.Namespace) -> None:
    cluster = _cluster(arguments)
    if cluster is None:
        raise InputError("dpipe submit needs --cluster FILE: a specification of the queue to submit to.")
    # a recipe that is wrong, or a plan that does not fit, is said before anything waits in a queue
    load_recipe(arguments.recipe, arguments.settings).plan(memory=arguments.memory, client=cluster)
    budget = () if arguments.memory is None else ("--memory", arguments.memory)
    made = submission.submit(
        arguments.recipe, ("run", arguments.recipe, *arguments.settings, *budget, "--quiet"), cluster
    )
    _say_submitted(made)


def _say_submitted(made: submission.Submission) -> None:
    print(f"{made.name} is job {made.jobs[-1]}; follow it with: dpipe status {made.name}")


def _resume(arguments: argparse.Namespace) -> None:
    _say_submitted(submission.resume(submission.read_submission(arguments.name)))


def _status(arguments: argparse.Namespace) -> None:
    print(submission.report(arguments.name))


def _logs(arguments: argparse.Namespace) -> None:
    print(submission.logs(submission.read_submission(arguments.name)))


def _cancel(arguments: argparse.Namespace) -> None:
    print(submission.cancel(submission.read_submission(arguments.name)))


def _run(arguments: argparse.Namespace) -> None:
    cluster = _cluster(arguments)
    with contextlib.ExitStack() as stack:
        # the other ranks of an MPI program go no further than this: a recipe may write files when it is read
        client = stack.enter_context(
            _started(cluster if cluster is not None and cluster.kind == "mpi" else None)
        )
        pipe = load_recipe(arguments.recipe, arguments.settings)
        if client is None:
            if cluster is not None and cluster.kind != "address":
                # what cannot be done does not wait in a queue
                pipe.plan(memory=arguments.memory, client=cluster)
            client = stack.enter_context(_started(cluster))
        done = pipe.run(
            memory=arguments.memory,
            client=client,
            workers=arguments.workers,
            progress=False if arguments.quiet else None,
        )
    print(done)


def _plan(arguments: argparse.Namespace) -> None:
    cluster = _cluster(arguments)
    must_run = cluster is not None and cluster.kind in ("address", "mpi")
    with _started(cluster if must_run else None) as client:
        pipe = load_recipe(arguments.recipe, arguments.settings)
        print(pipe.plan(memory=arguments.memory, client=client or cluster, workers=arguments.workers))


def _predict(arguments: argparse.Namespace) -> None:
    if len(arguments.paths) < 2:
        raise InputError(
            "predict needs input files and an output folder: dpipe predict BUNDLE IN [IN ...] OUT."
        )
    *source, destination = arguments.paths
    show = False if arguments.quiet else None
    with _started(_cluster(arguments)) as client, Session("predict", show=show) as session:
        done = score_files(
            arguments.bundle,
            source,
            destination,
            method=arguments.method,
            keep=arguments.keep,
            memory=arguments.memory,
            client=client,
            workers=arguments.workers,
            trusted=arguments.trust,
            listener=session.listener,
            started=session.started,
        )
    print(
        f"{counted(done.n_files, 'file')} with {counted(done.n_rows, 'row')} in {destination}; "
        f"{done.n_skipped} were there already"
    )


def _report(arguments: argparse.Namespace) -> None:
    workdir = Path(arguments.workdir)
    record = RunRecord.read(workdir / "run.json")
    print(write_report(record, workdir / "report.html").resolve().as_uri())


def _add_verify(commands: Any) -> None:
    check = commands.add_parser(
        "verify",
        help="check a result or a bundle against its manifest",
        description="Check every file of a result or a bundle against its manifest; the exit status is 1 if any is "
        "missing, changed, cut short or not of it.",
        epilog="example: dpipe verify runs/taxi_tips/bundle",
    )
    check.add_argument("path", metavar="PATH", help="folder of the result")
    check.set_defaults(command=_verify)


def _verify(arguments: argparse.Namespace) -> None:
    found = verify(arguments.path)
    print(found)
    if not found.ok:
        raise SystemExit(1)


def _estimators(arguments: argparse.Namespace) -> None:
    print(estimators())


def _cluster(arguments: argparse.Namespace) -> Any:
    """Read the cluster that --cluster names; None for this machine."""
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"--workers must be at least 1, got {arguments.workers}.")
    if arguments.cluster is None:
        return None
    if arguments.workers is not None:
        raise InputError(
            "--workers is for this machine; how many workers a cluster has is said by --cluster."
        )
    return Cluster.read(arguments.cluster)


@contextlib.contextmanager
def _started(cluster: Any) -> Iterator[Any]:
    """Start a cluster, and take its jobs and certificates away also when a queue ends this process."""
    if cluster is None:
        yield None
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with cluster as client:
            yield client
    finally:
        signal.signal(signal.SIGTERM, before)


def load_recipe(name: str, settings: Sequence[str]) -> Pipeline:
    """Import a recipe function and call it.

    Parameters
    ----------
    name : str
        ``package.module`` with a function named as the module, or ``package.module:function``.
    settings : sequence of str
        ``key=value``; values are read as the type of the parameter's default or annotation.

    Raises
    ------
    InputError
        If there is no such recipe or parameter, or a value does not fit.
    """
    function = _recipe_function(name)
    arguments = parse_settings(settings, function)
    made = function(**arguments)
    if not isinstance(made, Pipeline):
        raise InputError(f"{name} returned a {type(made).__name__}; a recipe returns a dpipe.Pipeline.")
    return made


def _recipe_function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    function_name = function_name or module_name.rpartition(".")[2]
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as err:
        if err.name is None or not module_name.startswith(err.name):
            raise
        raise InputError(
            f"There is no recipe {name!r}: {err}. Give an importable module, such as recipes.taxi_tips; modules "
            f"under {os.getcwd()} are found, too."
        ) from err
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(
            f"{module_name} has no function {function_name!r}. Name one with {module_name}:FUNCTION."
        )
    return function


def parse_settings(settings: Sequence[str], function: Callable[..., Any]) -> dict[str, Any]:
    """Read ``key=value`` texts as keyword arguments of a function."""
    parameters = inspect.signature(function).parameters
    arguments = {}
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"{text!r} is not KEY=VALUE. Write it as in rows=2000000.")
        if key not in parameters:
            close = difflib.get_close_matches(key, parameters, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(f"The recipe has no parameter {key!r}; it has {', '.join(parameters)}.{hint}")
        arguments[key] = _value(key, value, parameters[key])
    return arguments


def _value(key: str, text: str, parameter: inspect.Parameter) -> Any:
    default = parameter.default
    kind: Any = type(default) if default not in (None, inspect.Parameter.empty) else str
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise InputError(f"{key}={text!r} is neither true nor false.")
        return text.lower() in ("true", "1", "yes")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as err:
            named = "a whole number" if kind is int else "a number"
            raise InputError(f"{key}={text!r} is not {named}, as in {key}={default}.") from err
    if text.lower() == "none":
        return None
    return text


if __name__ == "__main__":
    sys.exit(main())
