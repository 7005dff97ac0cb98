"""Count files, lines, and the test files that use private names: `python -m tests.measure [CHECKOUT]`.

A test file uses a private name if it imports one from our packages (`from edgevae.x import _y`, or from a module `_x`),
or reads or replaces an attribute `_y` of an object other than `self`. Command lines in a module `_cli` do not count.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import click

SOURCE = ("runtime", "train", "export", "benchmarks", "examples")
OURS = {"edgevae", "runtime", "train", "export", "benchmarks"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in {"_", "_cli"}


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each imported name in full, and its name in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname or alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names)


def imported(tree: ast.AST) -> set[str]:
    """The private modules and names of ours that a test file imports."""
    ours = [name.split(".")[1:] for name, _ in imports(tree) if name.split(".")[0] in OURS]
    return {part for parts in ours for part in parts if is_private(part)}


def root(node: ast.expr) -> str:
    """The name that an expression like `a.b().c` begins with."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def used(tree: ast.AST) -> set[str]:
    """The private attributes that a test file reads or replaces by `setattr`, except those of third-party modules."""
    others = {"self", "cls", *(known for name, known in imports(tree) if name.split(".")[0] not in OURS)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and root(node) not in others:
            found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            texts = [argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant)]
            found.update(part for text in texts if isinstance(text, str) for part in text.split("."))
    return {name for name in found if is_private(name)}


def row(name: str, files: list[Path]) -> str:
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in files]
    return f"{name:12} {len(lines):5} files {sum(lines):7,} lines, median {statistics.median(lines or [0]):4.0f}"


@click.command()
@click.argument("checkout", type=click.Path(exists=True, path_type=Path), default=Path(__file__).parent.parent)
@click.option("--names", is_flag=True, help="List the test files and the private names.")
def main(checkout: Path, names: bool) -> None:
    """Print the figures of CHECKOUT, by default this one."""
    files = {name: sorted((checkout / name).rglob("*.py")) for name in (*SOURCE, "tests")}
    for name in SOURCE:
        click.echo(row(name, files[name]))
    click.echo(row("packages", [path for name in SOURCE[:3] for path in files[name]]))
    click.echo(row("all source", [path for name in SOURCE for path in files[name]]))
    click.echo(row("tests", files["tests"]))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files["tests"]}
    importing = {path for path, tree in trees.items() if imported(tree)}
    using = {path: sorted(imported(tree) | used(tree)) for path, tree in trees.items() if imported(tree) | used(tree)}
    click.echo(f"{len(using)} test files use private names; {len(importing)} import them")
    if names:
        for path, found in using.items():
            click.echo(f"  {path.relative_to(checkout)}: {', '.join(found)}")


if __name__ == "__main__":
    main()
