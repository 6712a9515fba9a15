"""What a user types, up to the command: no test here trains anything."""

import contextlib
import io
import itertools
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import finetune
from finetune.cli import main, run_verb
from finetune.config import VERBS, expand_home
from finetune.errors import ConfigError, DataError, RunError, TrainingError

HEAVY = {"torch", "hydra", "omegaconf", "lightning", "timm", "albumentations", "matplotlib"}


class Job:
    """One command that would have run: its config, and the YAML that its run would keep."""

    def __init__(self, verb: str, config: Any, as_yaml: str) -> None:
        self.verb, self.config, self.as_yaml = verb, config, as_yaml


@contextlib.contextmanager
def recorded(run: Callable[[], object] = lambda: None) -> Iterator[list[Job]]:
    """Put ``run`` in the place of every command, and give the jobs that come to them."""
    jobs: list[Job] = []

    def command(verb: str) -> types.ModuleType:
        def record(config: Any, as_yaml: str) -> object:
            jobs.append(Job(verb, config, as_yaml))
            return run()

        module = types.ModuleType(f"finetune.commands.{verb}")
        module.run = record  # type: ignore[attr-defined]
        return module

    with pytest.MonkeyPatch.context() as patch:
        for verb in VERBS:
            patch.setitem(sys.modules, f"finetune.commands.{verb}", command(verb))
        yield jobs


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    with recorded() as jobs:
        yield jobs


@pytest.fixture
def refusal(jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that types a command and returns the message with which it is refused."""

    def refuse(*words: str) -> str:
        assert main(words) == 2
        assert jobs == []
        out, message = capsys.readouterr()
        assert "Traceback" not in message
        assert out == ""
        return message

    return refuse


def one(jobs: list[Job]) -> Job:
    (job,) = jobs
    return job


# --- verbs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_alone_has_a_complete_config(verb, jobs):
    assert main([verb]) == 0
    assert one(jobs).verb == verb
    assert type(one(jobs).config) is VERBS[verb]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help(words, capsys):
    assert main(words) == 0
    assert "Usage: finetune VERB" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["seed=1", "-h"], ["optimizer.lrr=1", "--help"]])
def test_help_of_a_verb_runs_nothing(words, jobs, capsys):
    assert main(["train", *words]) == 0
    assert "Usage: finetune train" in capsys.readouterr().out
    assert jobs == []


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"finetune {finetune.__version__}\n"


def test_a_mistyped_verb(refusal):
    assert refusal("trian") == (
        "ConfigError: trian: no such verb, expected one of train, evaluate, compare, predict, "
        "export, serve, inspect, data, cache. Did you mean `train`?\n"
    )


def test_the_verbs_are_functions_that_return_what_their_command_does():
    with recorded(lambda: "result") as jobs:
        assert finetune.inspect("seed=3") == "result"
        assert finetune.train("-m", "seed=1,2") == ["result", "result"]
    assert [job.config.seed for job in jobs] == [3, 1, 2]


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "finetune", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "pydantic" in imported  # so that the list is one
    assert imported & HEAVY == set()


def test_a_wrong_value_is_answered_without_torch():
    code = """
import sys
from finetune.cli import main
assert main(["train", "optimizer.lr=-1"]) == 2
assert "torch" not in sys.modules and "hydra" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- typos and wrong values -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["dataset=medcal"],
            "dataset: got `medcal`, expected one of digits, folder, formulas, medical. "
            "Did you mean `medical`?",
        ),
        (["optimizer.lrr=1"], "optimizer.lrr: no such key. Did you mean `optimizer.lr`?"),
        (["optimiser=sgd"], "optimiser: no such key. Did you mean `optimizer`?"),
        (["~loger"], "loger: no such key. Did you mean `logger`?"),
        (["confg_dir=x"], "confg_dir: no such key. Did you mean `config_dir`?"),
        (["+new=1"], "new: no such key."),
        (["+optimizer.lrr=1"], "optimizer.lrr: no such key. Did you mean `optimizer.lr`?"),
        (["++trainer.epoch=1"], "trainer.epoch: no such key. Did you mean `trainer.epochs`?"),
        (["optimizer.lr=-1"], "optimizer.lr: got -1, expected a number > 0 or auto or find."),
        (["optimizer.lr=fast"], "optimizer.lr: got `fast`, expected a number or auto or find."),
        (["optimizer.lr="], "optimizer.lr: got ``, expected a number or auto or find."),
        (["seed=1.5"], "seed: got 1.5, expected a whole number."),
        (["seed=[1,2]"], "seed: got [1, 2], expected a whole number."),
        (["trainer.devices=x"], "trainer.devices: got `x`, expected a whole number or auto."),
        (["dataset.root="], "dataset.root: got nothing, expected a file or folder."),
        (
            ["head.hidden_features=8"],
            "head.hidden_features: head=linear has no such key; head=mlp has.",
        ),
        (
            ["trainer=cpu", "trainer.precision=16-mixed"],
            "trainer.precision: got 16-mixed, which needs a GPU; on a CPU use "
            "trainer.precision=bf16-mixed or trainer.precision=32.",
        ),
        (
            ["experiment=mine"],
            "experiment: got `mine`, expected one of first_look, pretrain_nano.",
        ),
        (["dataset=[medical]"], "dataset: got `[medical]`, expected one of digits, folder, "),
        (["model=_base"], "model: got `_base`, expected one of nano, resnet18, "),
        (["flowers"], "flowers: expected name=value, ~name, -m or --help; `finetune train --help`"),
        (["--lr", "3"], "--lr: expected name=value"),
        (["dataset.root", "=", "x"], "dataset.root: expected name=value"),
        (["dataset.root = x"], "dataset.root = x: expected name=value"),
        ([""], ": expected name=value"),
    ],
)
def test_a_wrong_word_is_answered_with_the_key_the_value_and_the_nearest_fix(
    words, message, refusal
):
    assert refusal("train", *words).startswith(f"ConfigError: {message}")


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export", "inspect"])
def test_a_verb_has_its_own_keys_alone(verb, refusal):
    assert refusal(verb, "optimizer=sgd").startswith("ConfigError: optimizer: no such key.")
    assert refusal(verb, "experiment=x").startswith("ConfigError: experiment: no such key.")


def test_every_wrong_value_is_named_at_once(refusal):
    message = refusal("train", "optimizer.lr=0", "seed=-1")
    assert message.splitlines() == [
        "ConfigError: optimizer.lr: got 0, expected a number > 0 or auto or find.",
        "seed: got -1, expected a number >= 0.",
    ]


PIECES = [
    *"~+=,.-_'\"()[]{}$\\/@:#*?!%&|;<>`é1 \n\t",
    *("++", "${", "${oc.env:HOME}", "${seed}", "e5", "-m", "???", "null", "true", "a", "hydra"),
    *("optimizer", "lr", "logger", "csv", "experiment", "resume", "config_dir", "defaults"),
]
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
KEYS = [
    *("seed", "name", "runs", "dataset.root", "optimizer.lr", "+head.scale", "++trainer.epochs"),
    *("logger", "~logger", "experiment", "augmentation.transforms", "config_dir", "resume"),
]
WORD = st.one_of(TEXT, st.builds("{}={}".format, st.sampled_from(KEYS), TEXT), st.just("-m"))


@settings(max_examples=50)
@given(st.sampled_from(["train", "train", "inspect", "predict"]), st.lists(WORD, max_size=3))
@example("train", ["~experiment", "experiment=null"])
@example("train", ["-m", "+seed=1,,2"])
@example("train", ["logger=null", "-m"])
@example("train", ["name='a' 'b'"])
@example("train", ["-m", "~logger=~"])
def test_whatever_is_typed_runs_or_is_refused_by_a_message(verb, words):
    errors = io.StringIO()
    with recorded(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = main([verb, *words])
    assert status in (0, 2), errors.getvalue()
    assert (status == 0) == (errors.getvalue() == "")


# --- values arrive as typed -------------------------------------------------------------------

NASTY_PATHS = [
    "two words",
    " x ",
    "it's",
    'say "hi"',
    "'a'b'",
    "a,b",
    "'a','b'",
    "(1)",
    "[a]",
    "{a: b}",
    "a=b",
    "$HOME",
    "$(ls)",
    "`ls`",
    "a#b",
    "#",
    "*.jpg",
    "a: b",
    "-x",
    "@x",
    "a\\",
    "\\'",
    "a\\'b",
    "007",
    "1e5",
    "1_000",
    "true",
    "NULL",
    "~",
    "~/flowers",
    "~no-such-user/x",
    "a~b",
    "range(3)",
    "choice(a,b)",
    "a\nb",
    "Blüten/花",
    "e\u0301",  # two code points for one letter, as macOS writes them
]


@pytest.mark.parametrize("index", range(0, len(NASTY_PATHS), 3))
def test_a_path_arrives_as_typed_and_stays_so_in_the_yaml(index, jobs):
    keys = ("dataset.root", "model.weights", "runs")
    paths = dict(zip(keys, NASTY_PATHS[index : index + 3], strict=False))
    assert main(["train", *(f"{key}={path}" for key, path in paths.items())]) == 0
    config, kept = one(jobs).config, yaml.safe_load(one(jobs).as_yaml)
    arrived = {
        "dataset.root": (config.dataset.root, kept["dataset"]["root"]),
        "model.weights": (config.model.weights, kept["model"]["weights"]),
        "runs": (config.runs, kept["runs"]),
    }
    for key, path in paths.items():
        assert arrived[key] == (expand_home(Path(path)), path)


def test_a_path_that_is_no_text_arrives_too(jobs):
    path = os.fsdecode(b"bl\xfcte.jpg")
    assert main(["train", f"dataset.root={path}"]) == 0
    assert os.fsencode(one(jobs).config.dataset.root) == b"bl\xfcte.jpg"


PATH = st.one_of(
    st.text(min_size=1, max_size=12),
    st.text("ab '\"\\,=()[]{}$~#:&*?!@%;|<>`é花1e+-./_\t\n", min_size=1, max_size=12),
).filter(
    lambda text: (
        "\0" not in text
        and "${" not in text  # interpolation
        and text not in ("null", "???")  # no path; a value that must be given
        and not (text[0] in "'\"" and text[0] == text[-1])  # quotes for Hydra
    )
)


@settings(max_examples=20)
@given(st.tuples(PATH, PATH, PATH))
def test_any_path_arrives_as_typed(paths):
    run, given_input, output = paths
    with recorded() as jobs:
        run_verb("predict", [f"run={run}", f"input={given_input}", f"output={output}"])
    config = one(jobs).config
    expected = [expand_home(Path(path)) for path in paths]
    assert [config.run, config.input, config.output] == expected


@pytest.mark.parametrize(("typed", "path"), [("'a,b'", "a,b"), ('"it\'s"', "it's"), ("null", None)])
def test_quotes_for_hydra_are_taken_off_and_null_is_no_path(typed, path, jobs):
    assert main(["train", f"dataset.root={typed}"]) == 0
    assert one(jobs).config.dataset.root == (path and Path(path))


@pytest.mark.parametrize("name", ["007", "1e5", "2024_01_02", "true", "1.0", "two words", "é"])
def test_a_name_that_looks_like_a_number_stays_a_name(name, jobs):
    assert main(["train", f"name={name}", f"dataset.name={name}"]) == 0
    assert one(jobs).config.name == one(jobs).config.dataset.name == name


def test_text_may_hold_an_apostrophe(jobs):
    assert main(["train", "logger=mlflow", "logger.experiment_name=it's mine"]) == 0
    assert one(jobs).config.logger.experiment_name == "it's mine"


def test_a_list_of_transforms_can_be_typed(jobs):
    typed = "augmentation.transforms=[{name: HorizontalFlip, p: 0.5}, {name: Transpose}]"
    assert main(["train", typed]) == 0
    assert one(jobs).config.augmentation.transforms == [
        {"name": "HorizontalFlip", "p": 0.5},
        {"name": "Transpose"},
    ]


def test_the_last_of_two_equal_keys_counts(jobs):
    assert main(["train", "seed=1", "seed=2", "model=resnet34", "model=resnet50"]) == 0
    assert (one(jobs).config.seed, one(jobs).config.model.backbone) == (2, "resnet50")


# --- groups -----------------------------------------------------------------------------------


def test_a_root_alone_is_a_folder_of_the_users_own(jobs):
    assert main(["train", "dataset.root=flowers"]) == 0
    assert main(["train", "dataset=folder", "dataset.root=flowers"]) == 0
    assert jobs[0].config == jobs[1].config
    assert jobs[0].config.dataset.source == "folder"
    assert jobs[0].config.model.backbone == "resnet18"


@pytest.mark.parametrize("experiment", ["experiment=first_look", "experiment=null", "~experiment"])
def test_a_root_with_an_experiment_is_a_folder_too(jobs, experiment):
    assert main(["train", "dataset.root=flowers", experiment]) == 0
    assert one(jobs).config.dataset.source == "folder"
    assert one(jobs).config.model.backbone == "resnet18"


def test_an_experiment_may_choose_the_data_set_of_a_root(jobs, tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [override /dataset: medical]\n"
    (tmp_path / "experiment" / "xrays.yaml").write_text(text)
    words = ["dataset.root=flowers", f"config_dir={tmp_path}", "experiment=xrays"]
    assert main(["train", *words]) == 0
    assert one(jobs).config.dataset.color == "grey"


def test_a_manifest_alone_is_the_users_own(jobs):
    assert main(["train", "dataset.manifest=labels.csv"]) == 0
    assert one(jobs).config.dataset.source == "folder"


def test_a_root_with_a_dataset_moves_that_dataset(jobs):
    assert main(["train", "dataset=digits", "dataset.root=elsewhere"]) == 0
    assert one(jobs).config.dataset.source == "digits"
    assert one(jobs).config.dataset.root == Path("elsewhere")


def test_a_typed_option_wins_over_what_the_dataset_chooses(jobs):
    assert main(["train", "model=resnet50", "augmentation=none"]) == 0
    config = one(jobs).config
    assert config.dataset.source == "digits"
    assert config.model.backbone == "resnet50"
    assert config.augmentation.transforms[0]["name"] == "SmallestMaxSize"


@pytest.mark.parametrize("words", [["~logger"], ["~logger=csv"], ["logger=null"]])
def test_the_logger_can_be_taken_away(words, jobs):
    assert main(["train", *words]) == 0
    assert one(jobs).config.logger is None
    assert yaml.safe_load(one(jobs).as_yaml).get("logger") is None


def test_an_experiment_can_be_none(jobs):
    assert main(["train", "experiment=null"]) == 0
    assert main(["train", "~experiment"]) == 0
    assert main(["train"]) == 0
    assert jobs[0].config == jobs[1].config == jobs[2].config


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    files = {
        "model/mine.yaml": "defaults: [_base, _self_]\nbackbone: resnet26\n",
        "dataset/flowers.yaml": "defaults: [_base, _self_]\nroot: ~/flowers\n",
        "season/spring.yaml": "# @package _global_\ntrainer:\n  epochs: 77\n",
        "experiment/best.yaml": (
            "# @package _global_\n"
            "defaults:\n  - override /model: mine\n  - override /dataset: medical\n  - _self_\n"
            "trainer:\n  epochs: 78\n"
        ),
        "experiment/wrong.yaml": "# @package _global_\ntrainer:\n  epochs: 0\n  epoch: 1\n",
        "experiment/bracket.yaml": "# @package _global_\ntrainer: [\n",
        "experiment/number.yaml": "5\n",
        "experiment/list.yaml": "- 5\n",
        "experiment/text.yaml": "trainer\n",
        "experiment/defaults.yaml": "defaults: 5\n",
        "experiment/override.yaml": "# @package _global_\ndefaults: [override /nothing: x]\n",
        "experiment/missing.yaml": "# @package _global_\ndefaults: [/model: nothing]\n",
        "experiment/scalar.yaml": "# @package _global_\ntrainer: 5\n",
    }
    for name, text in files.items():
        path = tmp_path / "own (1), confs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "own (1), confs"


def test_options_of_the_own_folder(own_folder, jobs):
    own = f"config_dir={own_folder}"
    assert main(["train", own, "model=mine"]) == 0
    assert jobs[0].config.model.backbone == "resnet26"
    assert jobs[0].config.model.resize_mode == "crop"
    assert main(["train", own, "dataset=flowers"]) == 0
    assert jobs[1].config.dataset.root == Path.home() / "flowers"
    assert main(["train", own, "+season=spring"]) == 0
    assert jobs[2].config.trainer.epochs == 77


def test_an_experiment_has_the_final_say_but_for_what_is_typed(own_folder, jobs):
    words = ["train", f"config_dir={own_folder}", "experiment=best"]
    assert main(words) == 0
    config = jobs[0].config
    assert (config.model.backbone, config.trainer.epochs) == ("resnet26", 78)
    assert config.dataset.monitor == "balanced_accuracy"
    assert main([*words, "trainer.epochs=3", "dataset.root=x", "model=nano"]) == 0
    config = jobs[1].config
    assert (config.model.backbone, config.trainer.epochs) == ("nano", 3)
    assert (config.dataset.monitor, config.dataset.root) == ("balanced_accuracy", Path("x"))


def test_mistakes_in_the_own_folder(own_folder, refusal):
    own = f"config_dir={own_folder}"
    message = refusal("train", own, "experiment=wrong")
    assert "trainer.epochs: got 0, expected a number >= 1 or auto." in message
    assert "trainer.epoch: no such key. Did you mean `trainer.epochs`?" in message
    assert "bracket.yaml" in refusal("train", own, "experiment=bracket")
    assert "Did you mean `best`?" in refusal("train", own, "experiment=bets")
    assert "season: got `sprin`" in refusal("train", own, "+season=sprin")
    assert refusal("train", "model=mine").startswith("ConfigError: model: got `mine`")


@pytest.mark.parametrize(
    "name", ["number", "list", "text", "defaults", "override", "missing", "scalar"]
)
def test_a_file_of_the_own_folder_that_is_no_config(name, own_folder, refusal):
    message = refusal("train", f"config_dir={own_folder}", f"experiment={name}")
    assert message.startswith("ConfigError: ")
    assert len(message) < 300


def test_an_own_folder_that_is_not_there(refusal, tmp_path):
    (tmp_path / "file").touch()
    for typed in (tmp_path / "nowhere", tmp_path / "file", "", "~no-such-user"):
        assert refusal("train", f"config_dir={typed}") == (
            f"ConfigError: config_dir: got `{typed}`, expected a folder that exists.\n"
        )


# --- -m ---------------------------------------------------------------------------------------


def test_every_combination_runs_in_order(jobs, capsys):
    assert main(["train", "-m", "model=resnet18,resnet34", "seed=0,1", "optimizer.lr=1e-3"]) == 0
    got = [(job.config.model.backbone, job.config.seed) for job in jobs]
    assert got == list(itertools.product(["resnet18", "resnet34"], [0, 1]))
    assert {job.config.optimizer.lr for job in jobs} == {1e-3}
    headers = re.findall(r"^== .*", capsys.readouterr().out, re.MULTILINE)
    assert headers[1] == "== model=resnet18 seed=1 optimizer.lr=1e-3"
    assert len(headers) == 4


@pytest.mark.parametrize(
    ("words", "key", "values"),
    [
        (["seed=range(3)"], "seed", [0, 1, 2]),
        (["seed=choice(4,5)"], "seed", [4, 5]),
        (["seed=7"], "seed", [7]),
        (["name=a,b"], "name", ["a", "b"]),
        (["name=1e5,007"], "name", ["1e5", "007"]),
        (["runs=~/a,/b c,d (1)"], "runs", [Path.home() / "a", Path("/b c"), Path("d (1)")]),
        (["runs='a,b',c"], "runs", [Path("a,b"), Path("c")]),
        (["runs='a,b'"], "runs", [Path("a,b")]),
        (["resume=null", "name=null,a"], "name", [None, "a"]),
    ],
)
def test_several_values(words, key, values, jobs):
    assert main(["train", "-m", *words]) == 0
    assert [getattr(job.config, key) for job in jobs] == values


def test_several_options_with_none_among_them(jobs):
    assert main(["train", "--multirun", "logger=null,tensorboard", "dataset=medical,digits"]) == 0
    assert [(job.config.logger is None, job.config.dataset.source) for job in jobs] == [
        (True, "folder"),
        (True, "digits"),
        (False, "folder"),
        (False, "digits"),
    ]


@pytest.mark.parametrize("word", ["optimizer.lr=1,2", "seed=range(3)", "name=a,b"])
def test_several_values_without_m(word, refusal):
    key, value = word.split("=")
    message = refusal("train", word)
    assert message.startswith(f"ConfigError: {key}: got several values, `{value}`; put -m before")
    assert f"{key}=\"'{value}'\"" in message


def test_several_options_without_m(refusal):
    message = refusal("train", "model=resnet18,resnet34")
    assert message.startswith("ConfigError: model: got several values, `resnet18,resnet34`; put -m")


def test_a_wrong_option_among_several(refusal):
    message = refusal("train", "-m", "model=resnet18,resnet43")
    assert "model: got `resnet43`" in message
    assert "Did you mean `resnet34`?" in message


def test_the_first_job_that_is_refused_ends_the_rest(jobs, capsys):
    assert main(["train", "-m", "optimizer.lr=1e-3,-1,1e-4"]) == 2
    assert one(jobs).config.optimizer.lr == 1e-3
    assert "optimizer.lr: got -1" in capsys.readouterr().err


# --- the environment --------------------------------------------------------------------------


def test_a_secret_is_used_but_never_kept(jobs, monkeypatch, capsys):
    monkeypatch.setenv("TRACKING", "https://me:CANARY@example.org")
    typed = "logger.tracking_uri=${oc.env:TRACKING}"
    assert main(["train", "logger=mlflow", typed]) == 0
    assert one(jobs).config.logger.tracking_uri == "https://me:CANARY@example.org"
    assert "CANARY" not in one(jobs).as_yaml
    assert "${oc.env:TRACKING}" in one(jobs).as_yaml
    assert "CANARY" not in "".join(capsys.readouterr())


def test_a_path_and_a_number_may_come_from_the_environment(jobs, monkeypatch):
    monkeypatch.setenv("DATA", "/data (1)")
    monkeypatch.setenv("SEED", "8")
    assert main(["train", "dataset.root=${oc.env:DATA}/flowers", "seed=${oc.env:SEED}"]) == 0
    assert one(jobs).config.dataset.root == Path("/data (1)/flowers")
    assert one(jobs).config.seed == 8


def test_a_variable_that_is_missing(refusal, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    assert refusal("train", "dataset.root=${oc.env:NOWHERE}") == (
        "ConfigError: dataset.root: Environment variable 'NOWHERE' not found.\n"
    )


@pytest.mark.parametrize("value", ["${nowhere}", "${seed", "${seed}", "${oc.nothing:x}", "???"])
def test_other_interpolations_that_lead_nowhere(value, refusal):
    assert "seed" in refusal("train", f"seed={value}")


# --- resume -----------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    with recorded() as jobs:
        assert (
            main(["train", "seed=7", "trainer.epochs=3", "logger.name=${oc.env:LOGGER,csv}"]) == 0
        )
    folder = tmp_path / "my runs" / "a, b"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(one(jobs).as_yaml)
    return folder


def test_a_resumed_run_goes_on_as_it_began(run_folder, jobs):
    assert main(["train", f"resume={run_folder}"]) == 0
    config = one(jobs).config
    assert (config.seed, config.trainer.epochs) == (7, 3)
    assert config.resume == run_folder.resolve()


def test_a_resumed_run_reads_the_environment_anew(run_folder, jobs, monkeypatch):
    monkeypatch.setenv("LOGGER", "tensorboard")
    assert main(["train", f"resume={run_folder}"]) == 0
    assert one(jobs).config.logger.name == "tensorboard"


def test_what_may_change_in_a_resumed_run(run_folder, jobs):
    assert main(["train", f"resume={run_folder}", "dataset.workers=3", "debug=true"]) == 0
    assert one(jobs).config.dataset.workers == 3
    assert one(jobs).config.debug is True


@pytest.mark.parametrize(
    "word", ["seed=8", "model=resnet50", "trainer.epochs=9", "~logger", "+new=1", "config_dir=."]
)
def test_the_course_of_a_resumed_run_cannot_change(word, run_folder, refusal):
    key = re.split("=", word.lstrip("~+"))[0]
    message = refusal("train", f"resume={run_folder}", word)
    assert message.startswith(f"ConfigError: {key}: cannot change when a run is resumed")
    assert "debug, dataset.workers" in message


@pytest.mark.parametrize("value", ["dataset.workers=[", "dataset.workers=-1", "debug=maybe"])
def test_a_wrong_value_in_a_resumed_run(value, run_folder, refusal):
    message = refusal("train", f"resume={run_folder}", value)
    assert message.startswith(f"ConfigError: {value.split('=')[0]}: got ")


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "5", "\0", "seed: 1\n", "\udcff"])
def test_a_run_whose_config_is_damaged(text, run_folder, refusal):
    (run_folder / "config.yaml").write_text(text, errors="surrogateescape")
    assert "Unexpected" not in refusal("train", f"resume={run_folder}")


def test_a_folder_that_is_no_run(tmp_path, refusal):
    assert refusal("train", f"resume={tmp_path}").startswith(
        f"RunError: resume: {tmp_path.resolve()} is not a run directory; it has no config.yaml."
    )
    assert refusal("train", "resume=nowhere") == (
        "ConfigError: resume: got `nowhere`, expected a folder that exists.\n"
    )
    assert "expected a folder" in refusal("train", "resume=")


# --- how it ends ------------------------------------------------------------------------------


def fails(error: BaseException) -> Callable[[], object]:
    def run() -> object:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("no images"), 2, "DataError: no images\n"),
        (ConfigError("bad"), 2, "ConfigError: bad\n"),
        (RunError("taken"), 2, "RunError: taken\n"),
        (TrainingError("NaN"), 1, "TrainingError: NaN\n"),
        (
            ZeroDivisionError("by 0"),
            1,
            "Unexpected ZeroDivisionError: by 0\nAdd debug=true to see where it comes from.\n",
        ),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_status_and_message(error, status, message, capsys):
    with recorded(fails(error)):
        assert main(["predict"]) == status
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("error", [DataError("no images"), ZeroDivisionError("by 0")])
@pytest.mark.parametrize("word", ["debug=true", "debug=True"])
def test_a_traceback_only_with_debug(error, word, capsys):
    with recorded(fails(error)):
        assert main(["predict", word]) == error.__dict__.get(
            "exit_status", 2 - ("by" in str(error))
        )
    message = capsys.readouterr().err
    assert "Traceback (most recent call last)" in message
    assert message.splitlines()[-1].endswith(f"{type(error).__name__}: {error}")


def test_a_reader_that_has_read_enough_is_no_error():
    # Buffered, the text meets the closed pipe only when the process ends.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "finetune", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        message = process.stderr.read()
    assert message == b""
    assert process.returncode == 0


def test_the_process_works_from_any_folder_and_leaves_nothing_there(tmp_path):
    command = [sys.executable, "-m", "finetune", "train", "optimizer.lr=-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == "ConfigError: optimizer.lr: got -1, expected a number > 0 or auto or find.\n"
    )
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
