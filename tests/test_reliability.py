"""The documents name tests and files that are there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_every_promise_has_its_test() -> None:
    """Every row of a table ends with tests, and each of them is a function of that file."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    promises = [row for row in rows if not re.match(r"\|( tried |-)", row)]
    assert len(promises) > 20
    for row in promises:
        named = re.findall(r"`(test_\w+)::(test_\w+)`", row.rstrip(" |").rsplit("|", 1)[1])
        assert named, row
        for module, function in named:
            tree = ast.parse((TESTS / f"{module}.py").read_text())
            found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert function in found, f"{module}::{function}"


def test_links_lead_to_files() -> None:
    """Of the README and the documents, to files of the project."""
    for page in (TESTS.parent / "README.md", *PAGE.parent.glob("*.md")):
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert not lost, f"{page.name}: {lost}"
