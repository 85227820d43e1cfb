"""Compiled programs are kept between starts, where nobody else may write, and only there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from drnet_jax.runtime.compilation_cache import kept_programs

MAIN = Path(__file__).parents[1] / "main.py"
FOLDER, ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
IMAGES = np.arange(6, dtype=np.float32)


@pytest.fixture(autouse=True)
def started_anew() -> Iterator[None]:
    """JAX as it starts without a cache; the tests' own one comes back."""
    before = {name: jax.config.values[name] for name in (FOLDER, ENABLED)}
    jax.config.update(FOLDER, None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def events() -> Iterator[list[str]]:
    """What JAX's cache notes."""
    found: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event.startswith("/jax/compilation_cache/cache_"):
            found.append(event.rpartition("/")[2])

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


def compile_and_run() -> None:
    """The same program every time, which JAX has not seen in this process."""
    compilation_cache.reset_cache()
    np.testing.assert_allclose(jax.jit(lambda x: x * 3 + 1)(IMAGES), IMAGES * 3 + 1)


def test_the_next_start_finds_it(
    tmp_path: Path, events: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" / "cache" / "programs"
    with kept_programs(folder):
        compile_and_run()
    assert events == ["cache_misses"]
    (entry,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    kept = entry.read_bytes()
    jax.config.update(FOLDER, None)
    events.clear()
    with kept_programs(folder):
        compile_and_run()
    assert events == ["cache_hits"]
    assert entry.read_bytes() == kept and list(folder.iterdir()) == [entry]
    line = f"compiled programs are kept in {folder} (remove it at will)\n"
    assert capsys.readouterr().out == line * 2


def test_every_block_has_its_own(tmp_path: Path, events: list[str]) -> None:
    """And after it JAX is as it was before: nothing goes to a folder that may be gone."""
    before = dict(jax.config.values)
    for name in ("a", "b"):
        with kept_programs(tmp_path / name):
            # Unlike `compile_and_run` without a reset of the cache, which is not the tests' to do.
            np.testing.assert_allclose(jax.jit(lambda x: x * 3 + 1)(IMAGES), IMAGES * 3 + 1)
        assert len(list((tmp_path / name).iterdir())) == 1
        assert jax.config.values[FOLDER] is None
        assert dict(jax.config.values) == before
    assert events == ["cache_misses"] * 2
    jax.jit(lambda x: x * 3 + 1)(IMAGES)
    assert len(events) == 2


def test_a_damaged_entry_is_compiled_anew(tmp_path: Path, events: list[str]) -> None:
    """As a process leaves it that was killed while it wrote, or has not yet written the rest."""
    with kept_programs(tmp_path / "programs"):
        compile_and_run()
        (entry,) = (tmp_path / "programs").iterdir()
        for damaged in (entry.read_bytes()[: entry.stat().st_size // 2], b""):
            entry.write_bytes(damaged)
            events.clear()
            with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
                compile_and_run()
            assert events == ["cache_misses"]


def test_the_users_own_cache_wins(
    tmp_path: Path, events: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    jax.config.update(FOLDER, str(own))
    with kept_programs(tmp_path / "programs"):
        compile_and_run()
    assert events == ["cache_misses"] and len(list(own.iterdir())) == 1
    jax.config.update(FOLDER, None)
    jax.config.update(ENABLED, False)
    with kept_programs(tmp_path / "programs"):
        compile_and_run()
    assert len(events) == 1
    assert list(tmp_path.iterdir()) == [own] and capsys.readouterr().out == ""


def test_processes_of_one_run_have_none(tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with kept_programs(tmp_path / "programs"):
            pass
    assert jax.config.values[FOLDER] is None and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file")
    with kept_programs(tmp_path / "cache" / "programs"):
        compile_and_run()
    words = f"compiled programs are not kept: {tmp_path / 'cache'}"
    assert capsys.readouterr().out.startswith(words)
    assert (tmp_path / "cache").read_text() == "a file"


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_not_used(
    mode: int, tmp_path: Path, events: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever writes an entry has it run."""
    folder = tmp_path / "programs"
    folder.mkdir()
    folder.chmod(mode)
    with kept_programs(folder):
        compile_and_run()
    assert not events and not list(folder.iterdir())
    words = f"compiled programs are not kept: {folder}: others may write there"
    assert capsys.readouterr().out.startswith(words)


def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with kept_programs(tmp_path / "programs"):
        pass
    words = f"compiled programs are not kept: {tmp_path / 'programs'}: it is another user's"
    assert capsys.readouterr().out.startswith(words)


def test_nothing_is_left_where_nothing_was_kept(tmp_path: Path) -> None:
    """But for folders that were there."""
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "mine/new/programs"):
        jax.config.update(FOLDER, None)
        with pytest.raises(ZeroDivisionError), kept_programs(tmp_path / folder):
            raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_the_program_uses_it(tmp_path: Path) -> None:
    """It says where, and a command that fails leaves no workdir."""
    result = subprocess.run(
        [sys.executable, str(MAIN), "--mode=eval", "--workdir=none"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"},
    )
    assert result.returncode == 2 and "no checkpoint in " in result.stderr
    line = "compiled programs are kept in none/cache/programs (remove it at will)"
    assert line in result.stdout.splitlines()
    assert not list(tmp_path.iterdir())
