"""Every command that the documents and the docstrings of modules name, and what kind it is."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What was tried there is wrong on purpose.
_WRONG = "reliability.md"
DOCUMENTS = [
    ROOT / "README.md",
    *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.name != _WRONG),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
FOLDERS = ("configs", "drnet_jax", "runtime/drnet_runtime", "benchmarks", "experiments")
# What a reader puts something else in the place of.
ANY_FIELD = {"--config.x=y", "--config.x", "--noconfig.x"}
# Of no program of ours.
OTHERS = {"kill -9", "--signal=TERM@120"}
# Starts the command after its own options.
LAUNCHER = "srun"
# Of commits before, as the text beside them says.
FORMER = {"python experiments/demo_seeds.py", "python experiments/imagenette.py PATH --variants"}
_ENVIRONMENT = re.compile(r"[A-Z_]+=\S*")
_PROGRAM = re.compile(r"(.*/bin/)?(python3?|pip|drnet-jax)|\.ci/\w+|[\w/.]+\.py")


@dataclass(frozen=True)
class Command:
    """A command as it is written.

    Attributes:
      words: as a shell splits it, without variables of the environment before it.
      kind: `main`, `sweep`, `script`, `prepare`, `runtime`, `serve`, `pytest`, `pip`, `venv`, `ci`,
        `options` (of no program in particular), or empty: none of them.
      arguments: what follows the program, or the script.
    """

    words: tuple[str, ...]
    kind: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def documented_commands() -> dict[Command, str]:
    """All of them, once each, and where the first one is."""
    found: dict[Command, str] = {}
    for path in DOCUMENTS:
        for text in _in_document(path.read_text()):
            for command in _commands(text):
                found.setdefault(command, str(path.relative_to(ROOT)))
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            for text in _in_docstring(docstring):
                for command in _commands(text):
                    found.setdefault(command, str(path.relative_to(ROOT)))
    return {c: where for c, where in found.items() if str(c) not in FORMER | OTHERS}


def _in_document(text: str) -> Iterator[str]:
    """The lines of blocks without a language, and what stands between backticks."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        if language in ("", "sh", "bash"):
            yield from filter(str.strip, block.replace("\\\n", " ").splitlines())
    yield from _inline(re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def _in_docstring(text: str) -> Iterator[str]:
    """Lines that begin with a program, or go on with one after a colon; and backticks."""
    for line in text.replace("\\\n", " ").splitlines():
        if match := re.search(r"(?:^|: )((?:python3?|pip) .*)$", line):
            # Optional arguments are given; `[what the argument is; its default]` is none.
            yield re.sub(r"\[[^]]*;[^]]*\]|[][]|\.\.\.", "", match[1])
    yield from _inline(text)


def _inline(text: str) -> Iterator[str]:
    for span in re.findall(r"`([^`]+)`", text):
        words = span.split()
        first = next((w for w in words if not _ENVIRONMENT.fullmatch(w)), "")
        # A path alone is no command.
        if first.startswith("--") or (_PROGRAM.fullmatch(first) and _runs(first, words)):
            yield " ".join(words)
        elif re.fullmatch(r"[\w./-]+", first) and any(w.startswith("-") for w in words[1:]):
            yield " ".join(words)


def _runs(first: str, words: list[str]) -> bool:
    return len(words) > 1 or first in ("drnet-jax", ".ci/run")


def _commands(text: str) -> Iterator[Command]:
    words: list[str] = []
    # Quotes may be within a word, `#` begins a comment.
    for word in [*shlex.split(text, comments=True), "&&"]:
        if word == "&&":
            words = [w for w in words if w not in ANY_FIELD]
            if words[:1] == [LAUNCHER]:
                words = words[words.index("python") :]
            while words and _ENVIRONMENT.fullmatch(words[0]):
                words.pop(0)
            if words:
                yield _command(tuple(words))
            words = []
        else:
            words.append(word)


def _command(words: tuple[str, ...]) -> Command:
    first, rest = words[0], words[1:]
    if first.startswith("--"):
        return Command(words, "options", words)
    if first == "drnet-jax":
        return Command(words, "main", rest)
    if first in (".ci/run", ".ci/prepare"):
        return Command(words, "ci", words)
    if first.startswith("configs/sweeps/"):
        return Command(words, "sweep", words)
    if re.fullmatch(r"(.*/bin/)?pip", first):
        return Command(words, "pip", rest)
    if re.fullmatch(r"(.*/bin/)?python3?", first):
        modules = {
            ("-m", "venv"): "venv",
            ("-m", "pytest"): "pytest",
            ("-m", "drnet_jax"): "main",
            ("-m", "drnet_jax.sweep"): "sweep",
            ("-m", "drnet_jax.data.prepare"): "prepare",
            ("-m", "drnet_runtime"): "runtime",
            ("-m", "drnet_runtime.serve"): "serve",
        }
        if rest[:1] == ("main.py",):
            return Command(words, "main", rest[1:])
        if rest[:2] in modules:
            return Command(words, modules[rest[:2]], rest[2:])
        if rest and rest[0].startswith(("benchmarks/", "experiments/")):
            return Command(words, "script", rest)
    return Command(words, "", ())
