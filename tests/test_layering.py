"""The wings depend one way, as `pyproject.toml` says (import-linter)."""

from importlinter.cli import lint_imports


def test_contracts_are_kept() -> None:
    assert lint_imports(no_cache=True) == 0
