"""A value on a command line is the value that is used, or there is one clear line before any work.

In the process of the tests: what the program would run with is looked at instead.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from drnet_jax import cli
from drnet_jax.config import ConfigError, default_config, flatten, get_field
from drnet_jax.config_fields import FIELDS
from drnet_jax.config_files import find_config, load_config
from drnet_jax.config_overrides import set_fields, take_overrides
from drnet_jax.config_paths import PATH_FIELDS
from drnet_jax.data import prepare
from drnet_jax.sweeps.plan import Sweep, make_plan
from tests.small_run import small_config

ROOT = Path(__file__).parents[1]
DEFAULTS = flatten(default_config())
PATHS = {
    *("restore_from", "data.dir", "joint.init_from", "predict.input", "predict.output"),
    *("convert.weights", "convert.classes", "export.output", "report.runs"),
    "pretrain.init_from",
}
OPTIONAL = {
    *("joint.alpha", "joint.alpha_fraction"),
    *("budget.gmacs", "budget.ms", "budget.max_drop"),
}
TRUTHS = {
    **dict.fromkeys(("True", "true", "TRUE", "1", "yes", "Yes"), True),
    **dict.fromkeys(("False", "false", "FALSE", "0", "no", "No"), False),
}


def texts(name: str) -> dict[str, Any]:
    """Texts for a field, and the values that they say."""
    default = get_field(default_config(), name)
    if isinstance(default, bool):
        return TRUTHS
    if name in OPTIONAL:
        return {"0.25": 0.25, "None": None, "1": 1.0, "-1e-3": -0.001}
    if isinstance(default, int):
        return {"7": 7, "-1": -1, "1_000": 1000}
    if isinstance(default, float):
        return {"0.25": 0.25, "3": 3.0, "-.5": -0.5, "1e-3": 0.001, "inf": float("inf")}
    if isinstance(default, str):
        free = {"a b": "a b", "": "", "false": "false", "5": "5", "x=1": "x=1"}
        return free if name in PATHS else {**free, "y='z'": "y='z'", "None": "None"}
    if name in ("stages", "predictor.inputs", "report.runs"):
        return {"('a', 'b')": ("a", "b"), "['a']": ("a",), "one": ("one",), "()": (), "12": ("12",)}
    numbers = {"(3, 2)": (3, 2), "[3,2]": (3, 2), "3,2": (3, 2), "(3,)": (3,), "3": (3,), "()": ()}
    return {**numbers, "(0.5, -1, 2)": (0.5, -1, 2)}


def override(config: ConfigDict, arguments: list[str]) -> list[str]:
    """Sets what arguments say, as the program does; gives the other ones."""
    values, others = take_overrides(arguments)
    set_fields(config, values)
    return others


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_field_takes_its_value_after_an_equals_sign_or_a_space(name: str) -> None:
    other: Any = DEFAULTS
    for text, value in texts(name).items():
        want = other | {name: list(value) if isinstance(value, tuple) else value}
        for dashes in ("--", "-"):
            for arguments in ([f"{dashes}config.{name}={text}"], [f"{dashes}config.{name}", text]):
                config = default_config()
                assert override(config, ["before", *arguments, "after"]) == ["before", "after"]
                found = flatten(config)
                assert found == want
                assert type(get_field(config, name)) is type(value)


@pytest.mark.parametrize("name", [name for name, value in DEFAULTS.items() if type(value) is bool])
def test_booleans_alone(name: str) -> None:
    for arguments, value in (
        ([f"--config.{name}"], True),
        ([f"--config.{name}", "--mode=eval"], True),
        ([f"--noconfig.{name}"], False),
        ([f"-noconfig.{name}", "--mode", "eval"], False),
    ):
        config = default_config()
        assert override(config, arguments) == arguments[1:]
        assert get_field(config, name) is value
    # The word after it is not swallowed, and is an error of the program.
    assert take_overrides([f"--config.{name}", "maybe"])[1] == ["maybe"]
    assert take_overrides([f"--noconfig.{name}", "true"])[1] == ["true"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_values_written_by_the_program_are_read_back(data: st.DataObject) -> None:
    """As sweeps write them for their jobs."""
    numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**40), 2**40)
    name = data.draw(st.sampled_from(sorted(DEFAULTS)))
    default = get_field(default_config(), name)
    values: Any = {
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False),
        type(None): st.none() | st.floats(allow_nan=False),
        str: st.text() if name not in PATHS else st.from_regex(r"\A[\w./ ]*\Z"),
        tuple: st.lists(st.from_regex(r"\A/[\w./ ]*\Z") if name == "report.runs" else numbers),
    }[type(default)]
    value = data.draw(values)
    value = tuple(value) if isinstance(value, list) else value
    if name == "stages" or value == "None":
        return
    assert take_overrides([f"--config.{name}={value}"]) == ({name: value}, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--config.seed=one", "seed='one' must be an integer"),
        ("--config.seed=0.5", "seed='0.5' must be an integer"),
        ("--config.seed=None", "seed='None' must be an integer"),
        ("--config.seed=", "seed='' must be an integer"),
        (
            "--config.seed=\u22121",
            "seed='\u22121' must be an integer (it has '\u2212', minus sign)",
        ),
        ("--config.seed", "--config.seed has no value: --config.seed=<value>"),
        ("--config.seed --mode=eval", "--config.seed has no value"),
        ("--config.data.dir -x", "--config.data.dir has no value"),
        ("--config.data.dir = x", "--config.data.dir has no value"),
        ("--config.data.dir =x", "--config.data.dir has no value"),
        ("--config.joint.eta= 0.5", "joint.eta='' must be a number"),
        ("--config.joint.eta=0,5", "joint.eta='0,5' must be a number"),
        ("--config.joint.eta=\u201c0.5\u201d", "left double quotation mark"),
        ("--config.joint.alpha=none", "joint.alpha='none' must be a number or None"),
        ("--config.joint.alpha=''", "must be a number or None"),
        ("--config.data.flip=maybe", "data.flip='maybe' must be True or False"),
        ("--config.data.flip=", "data.flip='' must be True or False"),
        ("--noconfig.data.flip=true", "--config.data.flip=<True or False>"),
        ("--noconfig.seed=3", "seed is not True or False"),
        ("--config.model.resolutions=(224, 168)", 'for the shell: --config.model.resolutions="('),
        ("--config.model.resolutions (224, 168)", "model.resolutions='(224,' must be a tuple"),
        ("--config.model.resolutions=large", "must be a tuple"),
        ("--config.report.runs=(a,b)", "--config.report.runs=\"('a', 'b')\""),
        ("--config.report.runs=a,b", "must be a tuple"),
        ("--config.stages=(" + "(" * 500, "must be a tuple"),
        ("--config.joint={}", "config field 'joint' is a section"),
        ("--config.joint {}", "config field 'joint' is a section"),
        ("--config.joint.etaa=3", "unknown config field 'joint.etaa'; did you mean 'joint.eta'?"),
        ("--config.eta=3", "unknown config field 'eta'; did you mean 'joint.eta'?"),
        ("--config.joint.eta.x=3", "did you mean 'joint.eta'?"),
        ("--config.zzz.qqq=3", "drnet_jax/config_defaults.py lists them all"),
        ("--config.=3", "unknown config field ''"),
        ("--config.seed=1 --config.seed=2", "seed is given twice, as 1 and as 2"),
        ("--config.data.flip --noconfig.data.flip", "data.flip is given twice"),
        ("--config.joint.alpha=1 --config.joint.alpha=None", "joint.alpha is given twice"),
        ("--config.joint.eta=nan --config.joint.eta=1", "joint.eta is given twice"),
        ("--config.data.dir='x'", "begins or ends with a quote"),
        ("--config.predict.output=\u201cx\u201d", "begins or ends with a quote"),
        ("--config.restore_from=None", "restore_from='None' is no path"),
        ("--config.data.dir=~nobody-like-that/x", "is in the home directory of nobody"),
    ],
)
def test_bad_overrides(arguments: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        override(default_config(), arguments.split(" "))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [n for n, v in DEFAULTS.items() if isinstance(v, list | tuple)])
def test_the_example_of_a_tuple_is_one_that_the_field_takes(name: str) -> None:
    with pytest.raises(ConfigError, match="must be a tuple") as raised:
        override(default_config(), [f"--config.{name}=(,"])
    example = str(raised.value).rsplit("=", 1)[1].strip('"')
    values, _ = take_overrides([f"--config.{name}={example}"])
    assert FIELDS[name].complaint(values[name]) == ""


def test_what_may_be_unset_takes_none() -> None:
    config = default_config()
    override(config, ["--config.joint.alpha_fraction=None", "--config.joint.alpha=0.01"])
    assert config.joint.alpha_fraction is None and config.joint.alpha == 0.01
    override(config, ["--config.joint.alpha", "None"])
    assert config.joint.alpha is None


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[ConfigDict, str, Path]:
    """What the program would run with."""
    started: list[Any] = []
    monkeypatch.setattr(cli, "_main", lambda *found: started.append(found))
    monkeypatch.setattr(cli, "_interrupt_on_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
    cli.run()
    ((config, given),) = started
    return config, given.mode, given.workdir


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    config, mode, workdir = run(monkeypatch)
    assert flatten(config) == DEFAULTS
    assert (mode, workdir) == ("train", Path("runs/digits_on_photos"))
    for spelling in (
        "--config=tiny --mode=eval --workdir=a",
        "--mode eval --workdir a --config tiny",
    ):
        config, mode, workdir = run(monkeypatch, *spelling.split())
        assert (config.model.resolutions, mode, workdir) == ((48, 32), "eval", Path("a"))
    config, mode, workdir = run(
        monkeypatch,
        "--config.data.flip",
        "--mode=eval",
        "--config",
        "configs/tiny.py",
        "--mode=eval",
    )
    assert (config.data.flip, mode, workdir) == (True, "eval", Path("runs/tiny"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("eval", "argument 'eval' belongs to no flag: --mode=eval"),
        ("--config.data.flip eval", "argument 'eval' belongs to no flag: --mode=eval"),
        ("--config.data.flip maybe", "argument 'maybe' belongs to no flag"),
        ("configs/tiny.py", "belongs to no flag: --config=configs/tiny.py"),
        ("runs/a", "--workdir=<folder>"),
        ("--config.seed=1 2", "argument '2' belongs to no flag"),
        ("\u2013\u2013mode=eval", "belongs to no flag: --mode=eval"),
        ("\u2014config.seed=1", "belongs to no flag: --config.seed=1"),
        ("-mode=eval", "belongs to no flag: --mode=eval"),
        ("--mod=eval", "did you mean --mode?"),
        ("--work=a", "did you mean --workdir?"),
        ("--confg=tiny", "did you mean --config?"),
        ("--nomode", "belongs to no flag"),
        ("-- eval", "belongs to no flag"),
        ("--flagfile=flags", "belongs to no flag"),
        ("--undefok=x --x", "belongs to no flag"),
        ("--only_check_args", "belongs to no flag"),
        ("--mode=evaluate", "argument --mode: invalid choice: 'evaluate'"),
        ("--mode=", "argument --mode: invalid choice: ''"),
        ("--mode=eval --mode=train", "--mode is given twice, as eval and as train"),
        ("--workdir=a --workdir=b", "--workdir is given twice, as a and as b"),
        ("--config=tiny --config=folder", "--config is given twice"),
        ("--workdir --mode=eval", "argument --workdir: expected one argument"),
        ("--workdir", "argument --workdir: expected one argument"),
        ("--workdir=", "argument --workdir: '' is empty"),
        ("--workdir='a'", "argument --workdir: \"'a'\" begins or ends with a quote"),
        ("--config=", "'' is empty: name a path"),
        ("--config", "argument --config: expected one argument"),
        ("--config=none.py", "config file none.py does not exist"),
        ("--config=README.md", "config file README.md is not a Python file"),
        ("--config=docs/", "config file docs/ is a folder"),
        ("--config=nothing", "configs/nothing.py does not exist"),
        ("--config=tiny:large", "get_config() takes 0 positional arguments but 1 was given"),
        ("--config=configs/sweeps/tiny.py", "has no function get_config()"),
    ],
)
def test_bad_flags(
    arguments: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments.split(" "))
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("error: ") and words in line


def test_what_follows_a_colon_is_given_to_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ml_collections has it. A folder may have a colon of its own."""
    (tmp_path / "a:b").mkdir()
    file = tmp_path / "a:b" / "sized.py"
    file.write_text(
        "from drnet_jax.config import default_config\n"
        "def get_config(name='small'):\n"
        "    config = default_config()\n"
        "    config.seed = {'small': 4, 'large': 32, '': 5}[name]\n"
        "    return config\n"
    )
    for argument, seed in (("", 4), (":large", 32), (":", 5)):
        assert load_config(f"{file}{argument}").seed == seed
        config, _, workdir = run(monkeypatch, f"--config={file}{argument}")
        assert config.seed == seed and workdir == Path("runs/sized")
    with pytest.raises(SystemExit):
        run(monkeypatch, "--config", f"{file}:none")
    assert capsys.readouterr().err == f"error: {file}, line 4: KeyError: 'none'\n"


HEAD = "from drnet_jax.config import default_config\ndef get_config():\n    c = default_config()\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("import nothing_like_it", "line 1: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
        ("get_it = 3", "has no function get_config()"),
        ("get_config = 3", "TypeError: 'int' object is not callable"),
        ("def get_config():\n    return 3", "gives int, no ConfigDict"),
        ("def get_config():\n    pass", "gives NoneType, no ConfigDict"),
        ("def get_config():\n    raise ValueError", "line 2: ValueError"),
        (HEAD + "    c.nun = 3\n    return c", "line 4: AttributeError"),
        (HEAD + "    c.seed = 'x'\n    return c", "line 4: TypeError"),
        (
            HEAD + "    c.unlock()\n    c.joint.etaa = 3\n    return c",
            "bad.py: unknown config field 'joint.etaa'; did you mean 'joint.eta'?",
        ),
        (
            HEAD + "    c.unlock()\n    del c.joint.eta\n    return c",
            "bad.py: joint.eta is missing",
        ),
        (HEAD + "    c.data.dir = '~nobody-like-that'\n    return c", "bad.py: data.dir='~nobody"),
    ],
)
def test_bad_config_files(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        load_config(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, which is not the working one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_tilde_is_the_home_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every path, from a command line and from a file; `config.json` then has it in full."""
    assert set(PATH_FIELDS) == PATHS
    lines = [f"    c.{name} = '~/x'\n" for name in PATHS - {"report.runs"}]
    file = home / "my.py"
    file.write_text(f"{HEAD}{''.join(lines)}    c.report.runs = ('~/x', 'y')\n    return c\n")
    arguments = [f"--config.{name}=~/x" for name in PATHS - {"report.runs"}]
    arguments.append("--config.report.runs=('~/x', 'y')")
    for given_ in (["--config=~/my.py"], arguments, ["--config", "~/my.py", *arguments]):
        config, _, workdir = run(monkeypatch, *given_, "--workdir=~/run1")
        for name in PATHS - {"report.runs"}:
            assert get_field(config, name) == f"{home}/x"
        assert config.report.runs == (f"{home}/x", "y")
        assert workdir == home / "run1"
    assert find_config("~/my.py") == file
    given_prepare = prepare.parse(["mnist", "--data_dir=~/data", "--manual_dir=~/tars"])
    assert (given_prepare.data_dir, given_prepare.manual_dir) == (f"{home}/data", f"{home}/tars")
    assert prepare.parse(["mnist", "--data_dir=gs://a/b"]).data_dir == "gs://a/b"
    # The path of a variant, which is compared with what the job has in its config.json.
    plan = make_plan(Sweep("", {"q": {"a": {"data.dir": "~/x"}}}), small_config(), home)
    assert plan.stage_two[0].config["data.dir"] == f"{home}/x"
    assert os.listdir() == []
