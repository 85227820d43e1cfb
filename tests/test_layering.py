"""The wings depend one way, as `pyproject.toml` says (import-linter), and as the document draws."""

import re
from collections.abc import Iterator
from pathlib import Path

import grimp
from importlinter.cli import lint_imports

DOCUMENT = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
PACKAGE = "drnet_jax"


def test_contracts_are_kept() -> None:
    assert lint_imports(no_cache=True) == 0


def diagram() -> tuple[dict[str, str], set[tuple[str, str]]]:
    """By wing or file, its node in the diagram; and the arrows between nodes."""
    match = re.search(r"```mermaid\nflowchart TD\n(.*?)```", DOCUMENT, re.DOTALL)
    assert match is not None
    nodes: dict[str, str] = {}
    arrows = set()
    for line in match[1].splitlines():
        if labelled := re.fullmatch(r'  (\w+)\["(.+)"\]', line):
            nodes |= dict.fromkeys(labelled[2].split(", "), labelled[1])
        elif arrow := re.fullmatch(r"  (\w+) --> (\w+)", line):
            arrows.add((arrow[1], arrow[2]))
        else:
            raise AssertionError(f"neither a node nor an arrow: {line!r}")
    groups = set(nodes.values())
    nodes |= {end: end for arrow in arrows for end in arrow if end not in groups}
    return nodes, arrows


def imports(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    """Which wing or file imports which other one; what the package itself names is none of them."""
    for importer in graph.modules - {PACKAGE}:
        for imported in graph.find_modules_directly_imported_by(importer) - {PACKAGE}:
            first, second = importer.split(".")[1], imported.split(".")[1]
            if first != second:
                yield first, second


def reachable(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Pairs of nodes with a way along the arrows."""
    ways = set(arrows)
    while more := {(a, d) for a, b in ways for c, d in arrows if b == c} - ways:
        ways |= more
    return ways


def test_the_diagram_shows_the_imports() -> None:
    """Every wing is in it, every arrow is an import, and every import follows the arrows."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    nodes, arrows = diagram()
    wings = {child.split(".")[1] for child in graph.find_children(PACKAGE)}
    assert set(nodes) == wings
    found = {(nodes[first], nodes[second]) for first, second in imports(graph)}
    found = {(first, second) for first, second in found if first != second}
    assert arrows - found == set(), "arrows without an import"
    assert found - reachable(arrows) == set(), "imports that no arrows lead along"


def test_no_wing_imports_the_package_itself() -> None:
    """`drnet_jax/__init__.py` names what is above them all."""
    assert not grimp.build_graph(PACKAGE, cache_dir=None).find_modules_that_directly_import(PACKAGE)


def test_every_arrow_is_needed() -> None:
    _, arrows = diagram()
    for arrow in arrows:
        assert arrow not in reachable(arrows - {arrow}), f"{arrow} follows from others"


def test_the_document_has_a_line_for_every_wing() -> None:
    nodes, _ = diagram()
    rows = [line.split("|")[1] for line in DOCUMENT.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(nodes)
