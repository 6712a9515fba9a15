"""The Makefile, run for real by make, around a finetune, a pytest and a pip that take notes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).parents[1]
VERBS = ["train", "evaluate", "predict", "export", "inspect", "data", "cache"]

# Stands for `python -m finetune` and `python -m pytest`: one JSON line per call.
NOTE_TAKER = """
import json, os, sys
with open("calls.jsonl", "a") as file:
    print(json.dumps({"argv": sys.argv[1:], "environment": dict(os.environ)}), file=file)
sys.exit(int(os.environ.get("FAKE_STATUS", "0")))
"""

# Stands for the Python that PYTHON names, for the one in the .venv that it makes, and for uv.
FAKE_PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >> set-up.log
case "$*" in
*version_info*) echo "${FAKE_VERSION-3.11}" ;;
"-c import ensurepip"*) exit "${FAKE_VENV_MODULE_STATUS-0}" ;;
*"-Im ensurepip"*) exit "${FAKE_ENSUREPIP_STATUS-0}" ;;
"-m venv "*) for folder; do :; done; rm -rf "$folder"; mkdir -p "$folder/bin"
  cp "$0" "$folder/bin/python"; cp "$0" "$folder/bin/uv" ;;
*--require-hashes*) exit "${FAKE_PIP_STATUS-0}" ;;
esac
"""


def environment(**extra: str) -> dict[str, str]:
    """The environment without what an outer make, such as `make test`, adds for its children."""
    outer = {"ARGS", "PYTHON", "MAKEFLAGS", "MAKELEVEL", "MAKEFILES", "MFLAGS", "GNUMAKEFLAGS"}
    return {name: value for name, value in os.environ.items() if name not in outer} | extra


def run_make(
    project: Path, *arguments: str, **extra_environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=project,
        env=environment(**extra_environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def calls(project: Path) -> list[dict]:
    """What finetune and pytest were called with, since the last question."""
    notes = project / "calls.jsonl"
    if not notes.exists():
        return []
    lines = notes.read_text(encoding="utf-8").splitlines()
    notes.unlink()
    return [json.loads(line) for line in lines]


def arguments_of(project: Path, *typed: str, **extra_environment: str) -> list[str]:
    """Type a make command that succeeds in silence, and see what arrives."""
    done = run_make(project, *typed, **extra_environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (call,) = calls(project)
    return call["argv"]


def set_up_log(project: Path) -> list[str]:
    """What Python and uv were called with during the set-up, since the last question."""
    log = project / "set-up.log"
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8").splitlines()
    log.unlink()
    return lines


def write_executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def write_bare_project(root: Path) -> Path:
    """A clone in which nothing is set up, in a folder whose name has a space and a quote."""
    project = root / "it's a clone"
    project.mkdir()
    shutil.copy(REPOSITORY / "Makefile", project)
    for name in ("requirements.lock", "pyproject.toml"):
        (project / name).write_text("", encoding="utf-8")
        os.utime(project / name, (1_000_000_000, 1_000_000_000))
    write_executable(project / "python", FAKE_PYTHON)
    return project


def write_ready_project(root: Path) -> Path:
    """A clone that is set up, whose .venv/bin/python is a real one."""
    project = write_bare_project(root)
    (project / "finetune").mkdir()
    (project / "finetune/__main__.py").write_text(NOTE_TAKER, encoding="utf-8")
    (project / "pytest.py").write_text(NOTE_TAKER, encoding="utf-8")
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").symlink_to(Path(sys.executable).resolve())
    (project / ".venv/.installed").touch()
    return project


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    return write_bare_project(tmp_path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_ready_project(tmp_path)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ready_project(tmp_path_factory.mktemp("make"))


@pytest.fixture
def shared_project(shared_folder: Path) -> Path:
    """One project for all tests that change nothing in it but the notes."""
    calls(shared_folder)
    (shared_folder / "harm").unlink(missing_ok=True)
    return shared_folder


# --- name=value ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        "optimizer.lr=3e-4",
        "dataset.root=/data/two words/x",
        "dataset.root=~/flowers",
        "dataset.root=~",
        "name=it's",
        "name='single'",
        'name="double"',
        """name='"'"'""",
        "name=''",
        "name=",
        "name==",
        "name=a=b:=c",
        "name=$HOME",
        "name=$$",
        "name=$(shell touch harm)",
        "name=$(error harm)",
        "name=${undefined",
        "name=$(",
        "name=)$(MAKE)}",
        "name=$@ $< $^ $1",
        "name=${oc.env:HOME}",
        "name=`touch harm`",
        "name=$(touch harm)",
        "name=a;touch harm",
        "name=a&touch harm&",
        "name=a|touch harm",
        "name=a>harm",
        "name='; touch harm; '",
        "name=#not a comment",
        r"name=a\#b",
        "input=*",
        "input=images/**/*.[jp][np]g",
        "input=?",
        "name=a\\",
        "name=a\\\\",
        r"name=\$\n\t\'",
        "name=C:\\Users\\x y\\",
        "name=%",
        "name=!x !!",
        "name=-n",
        "name=--help",
        "name=a,b",
        "name=(a b)",
        "name=@a +b -c",
        "name=a\tb",
        "name=trailing blanks  ",
        "name=carriage\rreturn",
        "name=\x01\x7f",
        "name=Blüten/пёс/猫/🌻",
        "name=not-utf8-\udcff\udcfe",
        "dataset.classes=[ants, 'the bees', \"x\"]",
        "optimizer={name: adamw, betas: [0.9, 0.999]}",
        "optimizer.lr=1e-3,1e-4",
        "optimizer.lr=choice(1e-3,1e-4)",
        "+trainer.x=1",
        "++trainer.x=1",
        "~trainer=gpu",
        "hydra/launcher=joblib",
        "hydra.run.dir=/tmp/x",
        "+experiment@_global_=x",
        "a,b=1",
        "a%b=1",
        "a[0]=1",
        "a(b)=1",
        "a{b}=1",
        "it's=1",
        "größe=1",
    ],
)
def test_option_arrives_as_typed(shared_project: Path, option: str) -> None:
    assert arguments_of(shared_project, "train", option) == ["train", option]
    assert not (shared_project / "harm").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_gets_its_options(shared_project: Path, verb: str) -> None:
    assert arguments_of(shared_project, verb, "run=a b", "seed=3") == [verb, "run=a b", "seed=3"]


# Any text that a process can be started with; a line break has a test of its own.
typeable = st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]))


@settings(max_examples=60, deadline=None)
@given(values=st.lists(typeable, min_size=1, max_size=6))
def test_any_values_arrive_as_typed(shared_folder: Path, values: list[str]) -> None:
    options = [f"key{number}={value}" for number, value in enumerate(values)]
    # make itself drops blanks in front of a value, as Hydra does.
    expected = [f"key{number}=" + value.lstrip(" \t\r\v\f") for number, value in enumerate(values)]
    calls(shared_folder)
    assert arguments_of(shared_folder, "train", *options) == ["train", *expected]


def test_names_are_sorted_so_that_a_group_precedes_its_keys(shared_project: Path) -> None:
    typed = ["trainer.devices=2", "dataset.root=x", "trainer=ddp", "dataset=medical"]
    expected = ["dataset=medical", "dataset.root=x", "trainer=ddp", "trainer.devices=2"]
    assert arguments_of(shared_project, "train", *typed) == ["train", *expected]


def test_of_two_values_the_last_counts(shared_project: Path) -> None:
    assert arguments_of(shared_project, "train", "seed=1", "seed=2") == ["train", "seed=2"]


@pytest.mark.parametrize("typed", ["name=a\nb", "name=a\n@touch harm", "ARGS=a\nb"])
def test_line_break_is_refused(shared_project: Path, typed: str) -> None:
    done = run_make(shared_project, "train", typed)
    assert done.returncode == 2
    assert "a value cannot contain a line break" in done.stderr
    assert calls(shared_project) == []
    assert not (shared_project / "harm").exists()


def test_own_definitions_cannot_be_replaced(shared_project: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    own = set(re.findall(r"make\.[a-z_]+", makefile))
    assert {"make.quote", "make.names", "make.run"} <= own
    # Each is defined by `override`, but for the variable of the loops, which make defines.
    assert own - set(re.findall(r"override (?:define )?(make\.[a-z_]+)", makefile)) == {"make.each"}
    own.remove("make.each")
    typed = [f"{name}=touch harm" for name in sorted(own)]
    for extra in (["SHELL=/bin/false"], [".SHELLFLAGS=-n"], ["VPATH=/"], ["-e"]):
        argv = arguments_of(shared_project, "train", "seed=1", *typed, *extra)
        assert argv == ["train", "seed=1"]
    assert not (shared_project / "harm").exists()


# --- the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["-e"], ["-j4"]])
def test_nothing_comes_from_the_environment(shared_project: Path, flags: list[str]) -> None:
    exported = {
        "run": "x",
        "input": "x",
        "seed": "9",
        "dataset.root": "x",
        "ARGS": "harm",
        "make.names": "run",
        "make.options": "harm",
        "make.quote": "harm",
        "verb": "harm",
        "LC_ALL": "C",
    }
    assert arguments_of(shared_project, *flags, "train", **exported) == ["train"]
    with_option = arguments_of(shared_project, *flags, "train", "seed=1", **exported)
    assert with_option == ["train", "seed=1"]
    assert arguments_of(shared_project, *flags, "test", **exported) == []


def test_nothing_of_make_goes_into_the_environment(shared_project: Path) -> None:
    typed = ["run=x", "name=y", "ARGS=-m", "PYTHON=python3"]
    run_make(shared_project, "-j2", "train", *typed, UNRELATED="kept")
    (call,) = calls(shared_project)
    added = call["environment"].keys() - environment().keys()
    assert added - {"_", "LC_CTYPE", "MAKE_TERMOUT", "MAKE_TERMERR"} == {
        "UNRELATED",
        "FINETUNE_PROGRAM",  # so that the next command is shown as `make …`
    }


# --- ARGS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("-m ~logger", ["-m", "~logger"]),
        ("--help", ["--help"]),
        ("", []),
        ("   ", []),
        ("a   b\tc", ["a", "b", "c"]),
        ("'two words' \"and two\"", ["two words", "and two"]),
        (r"a\ b", ["a b"]),
        ("""it"'"s""", ["it's"]),
        ("''", [""]),
        ("* ? [a-z]*", ["*", "?", "[a-z]*"]),
        ("~ ~/x a=~/x", ["~", "~/x", "a=~/x"]),
        ("$HOME $(shell touch harm) $$", ["$HOME", "$(shell", "touch", "harm)", "$$"]),
        ("`touch harm`; touch harm & # x", ["`touch", "harm`;", "touch", "harm", "&", "#", "x"]),
        ("{a,b} !x -n", ["{a,b}", "!x", "-n"]),
        ("Blüte", ["Blüte"]),
    ],
)
def test_args_are_words(shared_project: Path, typed: str, words: list[str]) -> None:
    assert arguments_of(shared_project, "train", f"ARGS={typed}", "seed=1") == [
        "train",
        "seed=1",
        *words,
    ]
    assert arguments_of(shared_project, "test", f"ARGS={typed}", "seed=1") == words
    assert not (shared_project / "harm").exists()


@pytest.mark.parametrize("typed", ["it's", '"', "a\\"])
def test_open_quote_in_args_is_refused(shared_project: Path, typed: str) -> None:
    done = run_make(shared_project, "train", f"ARGS={typed}")
    assert done.returncode == 2
    assert f"ARGS: got {typed}, which ends inside a quote or in a backslash." in done.stderr
    assert "Traceback" not in done.stderr
    assert calls(shared_project) == []


# --- goals, status, signals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [["trian"], ["train", "dataset.root=", "/flowers"], ["train", "~logger"], ["run=x", "x"]],
)
def test_unknown_word_stops_before_anything_runs(shared_project: Path, typed: list[str]) -> None:
    done = run_make(shared_project, *typed)
    assert done.returncode == 2
    assert f"unknown: {typed[-1]}. Expected: help train" in done.stderr
    assert calls(shared_project) == []


@pytest.mark.parametrize("status", [1, 2, 130])
@pytest.mark.parametrize("target", ["train", "test"])
def test_failure_is_passed_on(shared_project: Path, target: str, status: int) -> None:
    done = run_make(shared_project, target, FAKE_STATUS=str(status))
    assert done.returncode == 2
    assert done.stderr.endswith(f"{target}] Error {status}\n")
    assert len(calls(shared_project)) == 1


def test_several_verbs_run_one_after_the_other(shared_project: Path) -> None:
    run_make(shared_project, "-j4", "train", "evaluate", "predict", "seed=1")
    assert [call["argv"] for call in calls(shared_project)] == [
        [verb, "seed=1"] for verb in ("train", "evaluate", "predict")
    ]


@pytest.mark.parametrize("whom", ["group", "make"])
def test_verb_may_finish_its_work_after_a_signal(project: Path, whom: str) -> None:
    """Ctrl-C reaches the whole group; a scheduler's SIGTERM reaches make alone."""
    (project / "finetune/__main__.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.3)\n"
        "    pathlib.Path('saved').touch()\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('started').touch()\n"
        "time.sleep(30)\n",
        encoding="utf-8",
    )
    with subprocess.Popen(
        ["make", "train"], cwd=project, env=environment(), start_new_session=True, stderr=-1
    ) as make:
        deadline = time.monotonic() + 20
        while not (project / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if whom == "group":
            os.killpg(make.pid, signal.SIGINT)
        else:
            make.terminate()
        make.wait(timeout=20)
    assert make.returncode != 0
    assert (project / "saved").exists()


def test_old_make_is_told_so(bare: Path) -> None:
    done = run_make(bare, "help", "MAKE_VERSION=3.81")
    assert done.returncode == 2
    assert "GNU make 4.0 or newer is needed, this is 3.81; on macOS: brew install" in done.stderr


# --- help, check, clean --------------------------------------------------------------------------


def test_help_needs_no_set_up_and_lists_every_target(bare: Path) -> None:
    shown = run_make(bare)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == run_make(bare, "help").stdout
    assert not (bare / ".venv").exists()
    refusal = run_make(bare, "no-such-target").stderr
    targets = refusal.split("Expected: ")[1].split(";")[0].split()
    assert {*VERBS, "help", "install", "check", "test", "bench", "lock", "clean"} <= set(targets)
    listed = {line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")}
    assert set(targets) <= listed
    assert max(map(len, shown.stdout.splitlines())) <= 100


def test_check_runs_every_tool_although_one_fails(project: Path) -> None:
    for tool in ("ruff", "mypy", "lint-imports"):
        write_executable(
            project / ".venv/bin" / tool,
            f'#!/bin/sh\necho {tool} "$@"\n[ "$1" != "$FAILS" ]\n',
        )
    expected = ["ruff check", "ruff format --check", "mypy", "lint-imports"]
    for fails, status in [("nothing", 0), ("check", 2)]:
        done = run_make(project, "check", FAILS=fails)
        assert done.returncode == status
        assert [line.strip() for line in done.stdout.splitlines()] == expected


def test_clean_leaves_runs_images_and_the_environment(project: Path) -> None:
    kept = [
        "runs/digits/1/model.json",
        "runs/x/__pycache__/a",
        "data/digits/0/1.png",
        "data/__pycache__/a.png",
        "finetune/config.py",
        ".venv/lib/__pycache__/a.pyc",
    ]
    gone = [
        "finetune/data/__pycache__/a.pyc",
        "tests/__pycache__/a.pyc",
        ".mypy_cache/x",
        ".pytest_cache/x",
        ".ruff_cache/x",
        "dist/x.whl",
    ]
    for name in kept + gone:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    done = run_make(project, "clean")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [name for name in kept if not (project / name).exists()] == []
    assert [name for name in gone if (project / name).exists()] == []
    run_make(project, "distclean")
    assert not (project / ".venv").exists()
    assert (project / "data/digits/0/1.png").exists()


# --- set-up --------------------------------------------------------------------------------------

SET_UP = [
    "-m venv --clear --without-pip .venv",
    "-Im ensurepip --default-pip",
    "-m pip install --quiet --require-hashes -r requirements.lock",
    "-m pip install --quiet --no-deps --no-build-isolation -e .",
]


def test_set_up_runs_once_as_part_of_a_verb(bare: Path) -> None:
    first = run_make(bare, "train", "seed=1", "PYTHON=./python")
    assert (first.returncode, first.stdout) == (0, "")
    assert first.stderr.splitlines() == [
        "Setting up .venv with Python 3.11, once: a few minutes, up to 6 GB."
    ]
    log = set_up_log(bare)
    assert log[-5:] == [*SET_UP, "-m finetune train seed=1"]
    assert all(line.startswith("-c import") for line in log[:-5])
    second = run_make(bare, "-j4", "train", "seed=1", "PYTHON=./python")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert set_up_log(bare) == ["-m finetune train seed=1"]


@pytest.mark.parametrize("where", ["FAKE_PIP_STATUS", "FAKE_ENSUREPIP_STATUS"])
def test_interrupted_set_up_starts_anew(bare: Path, where: str) -> None:
    broken = run_make(bare, "install", "PYTHON=./python", **{where: "1"})
    assert broken.returncode == 2
    assert not (bare / ".venv/.installed").exists()
    set_up_log(bare)
    assert run_make(bare, "install", "PYTHON=./python").returncode == 0
    assert set_up_log(bare)[-4:] == SET_UP
    assert [path.name for path in (bare / ".venv").iterdir() if path.is_file()] == [".installed"]


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_newer_lock_updates_what_is_there(bare: Path, changed: str) -> None:
    run_make(bare, "install", "PYTHON=./python")
    set_up_log(bare)
    (bare / changed).touch()
    os.utime(bare / ".venv/.installed", (1_100_000_000, 1_100_000_000))
    done = run_make(bare, "install", "PYTHON=./python", FAKE_PIP_STATUS="1")
    assert done.stderr.startswith("Bringing .venv up to date with requirements.lock.\n")
    assert set_up_log(bare) == ["-m pip --version", SET_UP[2]]
    # What an update left half done is not trusted.
    run_make(bare, "install", "PYTHON=./python")
    assert set_up_log(bare)[-4:] == SET_UP


def test_environment_made_by_hand_is_kept(bare: Path) -> None:
    write_executable(bare / ".venv/bin/python", FAKE_PYTHON)
    assert run_make(bare, "install", "PYTHON=no-such-python").returncode == 0
    assert set_up_log(bare) == ["-m pip --version", *SET_UP[2:]]


def test_environment_whose_python_is_gone_starts_anew(bare: Path) -> None:
    run_make(bare, "install", "PYTHON=./python")
    set_up_log(bare)
    (bare / ".venv/bin/python").unlink()
    os.utime(bare / ".venv/.installed", (1, 1))
    assert run_make(bare, "install", "PYTHON=./python").returncode == 0
    assert set_up_log(bare)[-4:] == SET_UP


def test_supported_pythons_are_those_of_pyproject(bare: Path) -> None:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        supported = SpecifierSet(tomllib.load(file)["project"]["requires-python"])
    versions = ["2.7", *(f"3.{minor}" for minor in range(9, 17))]
    accepted = []
    for version in versions:
        done = run_make(bare, "install", "PYTHON=./python", FAKE_VERSION=version)
        if done.returncode == 0:
            accepted.append(version)
            shutil.rmtree(bare / ".venv")
        else:
            assert (
                f"Python 3.11, 3.12 or 3.13 is needed, and ./python is {version}. "
                "Name another one: make install PYTHON=/path/to/python"
            ) in done.stderr.splitlines()
            assert not (bare / ".venv").exists()
    assert accepted == [version for version in versions if version in supported]
    assert accepted != []


def test_missing_python_is_told(bare: Path) -> None:
    done = run_make(bare, "train", "PYTHON=no-such-python")
    assert done.returncode == 2
    assert "and no-such-python is missing." in done.stderr.splitlines()[0]


def test_missing_venv_module_is_told(bare: Path) -> None:
    done = run_make(bare, "train", "PYTHON=./python", FAKE_VENV_MODULE_STATUS="1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "./python cannot make virtual environments; "
        "on Debian or Ubuntu: apt install python3.11-venv"
    )
    assert not (bare / ".venv").exists()


def test_lock_is_renewed_without_an_index_address(bare: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = run_make(bare, "lock", "PYTHON=./python", "ARGS=--upgrade", TMPDIR=str(temporary))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set_up_log(bare)[-1] == (
        "pip compile --quiet pyproject.toml --group dev --universal --python-version 3.11 "
        "--generate-hashes --no-emit-index-url --no-annotate --no-header "
        "--output-file requirements.lock --upgrade"
    )
    assert list(temporary.iterdir()) == []
    assert not (bare / ".venv").exists()


def test_committed_lock_has_hashes_and_no_index_address() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith(" ")]
    assert len(pinned) > 50
    assert all("==" in line and line.endswith("\\") for line in pinned)
    assert all(line.startswith("    --hash=sha256:") for line in lines if line.startswith(" "))


# --- .ci/run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_real_data", [True, False])
def test_ci_ends_with_pytest(project: Path, has_real_data: bool) -> None:
    shutil.copytree(REPOSITORY / ".ci", project / ".ci")
    # The real one asks the package index.
    (project / ".ci/audit").write_text("print('asked')\n")
    for tool in ("ruff", "mypy", "lint-imports"):
        write_executable(project / ".venv/bin" / tool, '#!/bin/sh\n[ "$1" != "$FAILS" ]\n')
    shared = project.parent / "shared"
    if has_real_data:
        shared.mkdir()
    clean = environment(FAKE_STATUS="3", FAILS="nothing")
    clean.pop("FINETUNE_REAL_DATA", None)
    command = ["bash", str(project / ".ci/run")]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    # make turns every failure of pytest into 2, and says so in its own line.
    assert (done.returncode, done.stdout) == (2, "asked\n")
    assert "Error 3" in done.stderr
    (call,) = calls(project)
    assert call["environment"].get("FINETUNE_REAL_DATA") == (str(shared) if has_real_data else None)
    failed = subprocess.run(
        command, env=clean | {"FAILS": "check"}, capture_output=True, check=False
    )
    assert failed.returncode == 2
    assert calls(project) == []
