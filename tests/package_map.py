"""Rules of the package map and of size, checked on source text alone: nothing is imported.

Every check takes modules and gives its findings as lines of text, none if all is well.
"""

import ast
import graphlib
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "dpipe"

#: Modules and folders of the package from top to bottom. Imports point down it only.
ORDER = (
    "cli",
    "testing",
    "pipeline",
    "tuning",
    "deploy",
    "outputs",
    "train",
    "validate",
    "composites",
    "planner",
    "families",
    "fields",
    "run",
    "ledger",
    "collect",
    "monitor",
    "cluster",
    "plan_record",
    "blocks",
    "sizes",
    "errors",
)
NOT_IN_BLOCKS = ("dask", "dask_expr", "dask_ml", "distributed")
MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 600

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = _Function | ast.ClassDef


@dataclass(frozen=True)
class Module:
    """One module: its dotted name, where it stands, its text."""

    name: str
    where: str
    text: str
    tree: ast.Module = field(repr=False)

    @property
    def part(self) -> str:
        """Entry of the package map; empty for the root."""
        return part_of(self.name)


def parse(sources: Mapping[str, str]) -> dict[str, Module]:
    """Parse made-up sources, by dotted name."""
    return {name: Module(name, name, text, ast.parse(text)) for name, text in sources.items()}


def read(checkout: Path, package: str) -> dict[str, Module]:
    """Read all modules of a package or folder, by dotted name."""
    modules = {}
    for path in sorted((checkout / package).rglob("*.py")):
        where = path.relative_to(checkout)
        parts = where.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, where.as_posix(), text, ast.parse(text))
    return modules


def part_of(name: str) -> str:
    """Give the top folder or module: "blocks" of "dpipe.blocks.table", "" of the root."""
    return name.split(".")[1] if "." in name else ""


def imported(module: Module, known: Iterable[str] = ()) -> Iterator[tuple[int, str]]:
    """Yield line and full name of what a module imports, wherever it does; relative ones with dots.

    `from a import b` is "a.b" if that is one of the `known` modules, else "a".
    """
    names = set(known)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield node.lineno, full if full in names else source


def wrong_imports(modules: Mapping[str, Module]) -> list[str]:
    """Find imports that do not point down the package map, and modules that are not on it."""
    found = []
    for module in modules.values():
        if module.part and module.part not in ORDER:
            found.append(f"{module.where}: dpipe.{module.part} is not on the package map {ORDER}")
            continue
        for line, target in sorted(set(imported(module, modules))):
            complaint = _complaint(module, target)
            if complaint:
                found.append(f"{module.where}:{line}: {complaint}")
    return found


def _complaint(module: Module, target: str) -> str:
    if target.startswith("."):
        return f"relative import of {target}: write the full name"
    top, here, there = target.split(".")[0], module.part, part_of(target)
    if here == "blocks" and top in NOT_IN_BLOCKS:
        return f"imports {target}: blocks work on memory, without Dask"
    if top != PACKAGE or not here or here == there:
        return ""
    if not there:
        return "imports the root package: name the module"
    if there not in ORDER:
        return f"imports {target}: dpipe.{there} is not on the package map {ORDER}"
    if ORDER.index(there) < ORDER.index(here):
        return f"imports {target}: dpipe.{there} stands above dpipe.{here}"
    return ""


def circle(modules: Mapping[str, Module]) -> list[str]:
    """Find one circle of imports: the names around it, the first one again at the end."""
    graph = {
        module.name: {name for _, name in imported(module, modules)} & set(modules) - {module.name}
        for module in modules.values()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as err:
        return list(reversed(err.args[1]))
    return []


def public_names(root: Module) -> set[str]:
    """Read the literal `__all__` of a package; empty if there is none."""
    for node in root.tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    return set()


def private_uses(module: Module, public: set[str]) -> list[str]:
    """Find names of dpipe that a recipe uses though they are not public."""
    aliases, used = set(), []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or PACKAGE for alias in node.names if alias.name == PACKAGE}
            inside = [alias.name for alias in node.names if alias.name.startswith(f"{PACKAGE}.")]
            used += [(node.lineno, name) for name in inside]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            used += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            used.append((node.lineno, f"{PACKAGE}.{node.attr}"))
    return [
        f"{module.where}:{line}: {name} is not a public name of {PACKAGE}"
        for line, name in sorted(set(used))
        if name.removeprefix(f"{PACKAGE}.") not in public
    ]


def too_long(module: Module) -> list[str]:
    """Find a file, and functions without their docstrings, over the limits of length."""
    found = []
    n_lines = len(module.text.splitlines())
    if n_lines > MAX_FILE_LINES:
        found.append(f"{module.where}: {n_lines} lines, {MAX_FILE_LINES} are allowed: split it")
    for node in ast.walk(module.tree):
        if isinstance(node, _Function) and (length := _code_lines(node)) > MAX_FUNCTION_LINES:
            found.append(
                f"{module.where}:{node.lineno}: {node.name} has {length} lines, "
                f"{MAX_FUNCTION_LINES} are allowed: split it"
            )
    return found


def _n_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _code_lines(node: _Function) -> int:
    return _n_lines(node) - (_n_lines(node.body[0]) if ast.get_docstring(node) else 0)


def unfinished(module: Module) -> list[str]:
    """Find comments that put work off."""
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    return [
        f"{module.where}:{token.start[0]}: {token.string}"
        for token in tokens
        if token.type == tokenize.COMMENT and re.search(r"\b(TODO|FIXME|XXX)\b", token.string)
    ]


def undocumented(module: Module) -> list[str]:
    """Find the module, and its public functions, classes and methods, without a proper first line."""
    found = [] if ast.get_docstring(module.tree) else [f"{module.where}: the module has no docstring"]
    for name, node in _public(module.tree):
        complaint = _summary_complaint(node)
        if complaint:
            found.append(f"{module.where}:{node.lineno}: {name} {complaint}")
    return found


def _public(parent: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, _Documented]]:
    for node in parent.body:
        if not isinstance(node, _Documented) or node.name.startswith("_"):
            continue
        if _decorators(node) & {"overload", "override", "setter"}:
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _public(node, f"{prefix}{node.name}.")


def _decorators(node: _Documented) -> set[str]:
    return {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}


def _summary_complaint(node: _Documented) -> str:
    lines = (ast.get_docstring(node) or "").splitlines()
    if not lines:
        return "has no docstring"
    if not lines[0].endswith(".") or any(line.strip() for line in lines[1:2]):
        return f"does not begin with a sentence of one line: {lines[0]!r}"
    is_noun = isinstance(node, ast.ClassDef) or _decorators(node) & {"property", "cached_property", "fixture"}
    first = lines[0].split()[0].lower()
    if not is_noun and (first in {"a", "an", "the", "this"} or re.search(r"(?<![sui])s$", first)):
        return f"does not begin with an imperative: {lines[0]!r}"
    return ""
