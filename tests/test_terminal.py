"""Printing to whatever there is: another encoding, a closed pipe, a full disk, nothing at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START = "from drnet_jax.runtime.terminal import OutputError, prepare_streams, print_line\n"
START += "prepare_streams()\n"
TRY = "import sys\ntry: print_line('lost')\nexcept OutputError as error: sys.exit(str(error))"


def start(code: str, redirection: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the code by a shell."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, START + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_what_the_encoding_lacks_is_escaped(environment: dict[str, str]) -> None:
    code = "import sys\nfor file in (None, sys.stderr): print_line('\\xb1 \\u2192 \\udcff', file)"
    result = start(code, **environment)
    assert (result.returncode, result.stdout) == (0, "\\xb1 \\u2192 \\udcff\n")
    assert result.stderr == result.stdout


def test_control_characters_are_escaped() -> None:
    """A terminal would obey what the name of a class says; an error is one line."""
    code = "print_line('a\\tb\\n\\x1b[2J\\x9b\\r'); print_error('c\\nd\\x07')"
    result = start(f"from drnet_jax.runtime.terminal import print_error\n{code}")
    assert result.stdout == "a\tb\n\\x1b[2J\\x9b\\r\n"
    assert result.stderr == "error: c\\nd\\x07\n"


@pytest.mark.parametrize(
    ("redirection", "why"), [("> >(exit)", "Broken pipe"), ("> /dev/full", "No space left")]
)
def test_output_that_is_lost_is_one_error(redirection: str, why: str) -> None:
    """And none more at the end, when Python writes what it could not print."""
    wait = "import time\ntime.sleep(0.2)\n"
    result = start(wait + TRY, redirection)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"stdout takes no more output ({why}")


def test_closed_streams_do_not_become_files(tmp_path: Path) -> None:
    """What is printed must not get into the file that is opened next."""
    code = f"file = open({str(tmp_path / 'file')!r}, 'w')\nprint_line('lost')\n"
    code += "import os\nfor number in (1, 2): os.write(number, b'lost')"
    assert start(code, "<&- >&- 2>&-").returncode == 0
    assert (tmp_path / "file").read_text() == ""
