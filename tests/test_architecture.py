"""Which room imports which: arrows go down, no file is in a circle, MPI stays in its room."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From the top down: a file imports its own room and lower floors. What starts the program is above
# all, and so is the package's own file, whose public names are imported on first use.
FLOORS = (
    ("__main__", "apts_mpi"),
    ("cli",),
    ("training",),
    ("settings", "checkpoints"),
    ("method", "data"),
    ("comm", "networks"),
    ("files", "trust_region"),
    ("errors", "version"),
)
HEIGHT = {room: -i for i, rooms in enumerate(FLOORS) for room in rooms}
WITHIN_DATA = ("minibatches", "shards", "sources", "embedded")

Imports = dict[str, set[str]]  # by module, without the package's own name in front of its modules


def imports_of(tree: Path, package: str) -> Imports:
    """What every file of a package imports, for types and inside functions too."""
    paths = {module_of(path, tree): path for path in sorted((tree / package).rglob("*.py"))}
    return {
        short(module, package): {short(name, package) for name in names(path, module, set(paths))}
        for module, path in paths.items()
    }


def module_of(path: Path, tree: Path) -> str:
    return ".".join(path.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")


def short(module: str, package: str) -> str:
    return module.removeprefix(f"{package}.")


def names(path: Path, module: str, modules: set[str]) -> Iterator[str]:
    """The modules that a file imports, whatever they are called in it."""
    parents = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in modules else base


def package_of(tree: Path) -> Imports:
    """The package's imports; those that its own file makes on first use close no circle."""
    return {**imports_of(tree, "apts_mpi"), "apts_mpi": {"version"}}


def rises(here: list[str], there: list[str]) -> bool:
    """Whether an import from one module to another, names split, goes up or sideways."""
    if here[0] == "trust_region" != there[0]:
        return True
    if here[0] == there[0] == "data":
        order = [("", *WITHIN_DATA).index("".join(each[1:2])) for each in (here, there)]
        return order[0] > order[1]
    return here[0] != there[0] and HEIGHT[here[0]] <= HEIGHT[there[0]]


def upward(imports: Imports) -> set[str]:
    """Imports between rooms that do not go down."""
    return {
        f"{module}: {name}"
        for module, imported in imports.items()
        for name in imported
        if name in imports and rises(module.split("."), name.split("."))
    }


def in_circles(imports: Imports) -> set[str]:
    """Files that import themselves by way of others."""
    found = set()
    for module in imports:
        seen: set[str] = set()
        left = [module]
        while left:
            new = (imports[left.pop()] & imports.keys()) - seen
            seen |= new
            left += new
        if module in seen:
            found.add(module)
    return found


def with_mpi(imports: Imports) -> set[str]:
    """Files that import mpi4py and are none of comm's."""
    importing = {name for name, them in imports.items() if {"mpi4py", "mpi4py.MPI"} & them}
    return {name for name in importing if not name.startswith("comm.")}


def between_commands(imports: Imports, tree: Path) -> set[str]:
    """Imports of one benchmark's files by another's; each has the harness and its own folder."""

    def command(module: str) -> str:
        """Its folder; of files that lie among folders of commands, the file."""
        path = tree / "benchmarks" / module.replace(".", "/")
        beside = path.parent.glob("*/__init__.py")
        return module if any(beside) else module.rpartition(".")[0]

    return {
        f"{module}: {name}"
        for module, imported in imports.items()
        for name in imported & imports.keys()
        if module.partition(".")[0] not in ("__main__", "report")  # which put commands together
        if command(name) not in (command(module), "harness")
    }


@pytest.fixture(scope="module")
def package() -> Imports:
    return package_of(ROOT)


def test_imports_go_down(package: Imports) -> None:
    assert upward(package) == set()


def test_no_file_is_in_a_circle(package: Imports) -> None:
    assert in_circles(package) == set()


def test_mpi_is_imported_by_its_room_alone(package: Imports) -> None:
    assert with_mpi(package) == set()


def test_commands_import_the_harness_and_themselves() -> None:
    imports = imports_of(ROOT, "benchmarks")
    assert between_commands(imports, ROOT) == set()


def rooms(imports: Imports) -> Imports:
    """What every room imports of others."""
    found: Imports = {}
    for module, imported in imports.items():
        room = module.split(".")[0]
        others = {name.split(".")[0] for name in imported & imports.keys()} - {room}
        found.setdefault(room, set()).update(others)
    return {room: names for room, names in found.items() if room != "apts_mpi"}


def reached(room: str, arrows: Imports) -> set[str]:
    return {name for each in arrows.get(room, ()) for name in (each, *reached(each, arrows))}


def test_the_picture_has_the_arrows_of_the_code(package: Imports) -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", text, re.MULTILINE))
    arrows = rooms(package)
    follow = {
        (room, name)
        for room, names in arrows.items()
        for name in names
        if any(name in reached(other, arrows) for other in names)
    }
    assert drawn == {(room, name) for room, names in arrows.items() for name in names} - follow


def test_files_that_the_page_names_are_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`(\w+/[\w/]+\.py)`", text)
    roots = [ROOT, ROOT / "apts_mpi"]
    assert [name for name in named if not any((each / name).exists() for each in roots)] == []


Plant = Callable[[str, str], Path]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """A copy of the tree's code with a line more at the end of one file."""

    def planted(file: str, line: str) -> Path:
        for path in (ROOT / file.split("/")[0]).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():  # several may be planted
                shutil.copyfile(path, copy)
        with (tmp_path / file).open("a") as stream:
            stream.write(f"\n{line}\n")
        return tmp_path

    return planted


UPWARD = [
    ("comm/clock.py", "import apts_mpi.cli.main", "comm.clock: cli.main"),
    ("comm/clock.py", "from apts_mpi import Comm", "comm.clock: apts_mpi"),
    (
        "data/shards/format.py",
        "from ..minibatches import ahead",
        "data.shards.format: data.minibatches.ahead",
    ),
    ("networks/cnn.py", "def f(): import apts_mpi.comm.clock", "networks.cnn: comm.clock"),
    ("errors.py", "if TYPE_CHECKING: from apts_mpi import version", "errors: version"),
    ("trust_region/lsr1.py", "from apts_mpi import errors", "trust_region.lsr1: errors"),
]


def test_planted_imports_upward_are_found(plant: Plant, package: Imports) -> None:
    for file, line, _ in UPWARD:
        tree = plant(f"apts_mpi/{file}", line)
    assert upward(package_of(tree)) - upward(package) == {found for _, _, found in UPWARD}


def test_a_planted_circle_is_found(plant: Plant) -> None:
    imports = package_of(plant("apts_mpi/networks/task.py", "def f(): from . import mlp"))
    assert {"networks.mlp", "networks.task"} <= in_circles(imports)


def test_a_planted_import_of_mpi_is_found(plant: Plant) -> None:
    imports = package_of(plant("apts_mpi/method/state.py", "def f(): from mpi4py import MPI"))
    assert with_mpi(imports) == {"method.state"}


def test_a_planted_import_of_another_command_is_found(plant: Plant) -> None:
    tree = plant("benchmarks/messages/micro/plan.py", "from benchmarks.scaling import plan")
    found = between_commands(imports_of(tree, "benchmarks"), tree)
    assert "messages.micro.plan: scaling.plan" in found
