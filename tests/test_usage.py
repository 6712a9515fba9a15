"""What ``--help`` says is complete, fits a terminal, and can be typed."""

import re
import shlex

import pytest

from finetune import cli, usage
from finetune.config import VERBS
from finetune.usage import CONF, group_options, groups, overview, verb_help
from finetune.validation import key_types

GROUPS = groups()
PAGES = {"overview": overview(), **{verb: verb_help(verb) for verb in VERBS}}
EXAMPLES = [
    (verb, line)
    for verb, page in PAGES.items()
    for line in re.findall(r"^  (finetune .*?)(?: {3,}.*)?$", page, re.MULTILINE)
]


def words_of(text: str) -> list[str]:
    return re.split(r"[\s,:|]+", text)


@pytest.fixture
def own_folder(tmp_path):
    for option in ("model/mine.yaml", "model/_hidden.yaml", "model/note.txt", "season/spring.yaml"):
        (tmp_path / option).parent.mkdir(exist_ok=True)
        (tmp_path / option).touch()
    return tmp_path


def test_the_overview_has_every_verb_and_every_option():
    words = words_of(PAGES["overview"])
    assert set(VERBS) <= set(words)
    for group in GROUPS:
        assert {group, *group_options(group)} <= set(words), group


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_a_verb_has_every_name(verb):
    words = words_of(PAGES[verb])
    keys = set(key_types(VERBS[verb])) | {"config_dir"}
    tags = {"head.name", "loss.name", "scheduler.name", "logger.name"}  # `head=mlp` says it
    assert keys - set(words) - set(GROUPS) == tags & keys


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_are_shown_as_they_are_typed(verb, monkeypatch):
    defaults = re.search(r"^Defaults.*:\n((?:  .*\n)+)", PAGES[verb], re.MULTILINE)
    assert defaults is not None
    # The default data set chooses what fits its small images.
    theirs = ("model", "augmentation", "freeze")
    words = [w for w in defaults[1].split() if re.split(r"[.=]", w)[0] not in theirs]
    configs = []
    monkeypatch.setattr(cli, "_run", lambda _, values, __: configs.append(values))
    assert cli.main([verb]) == cli.main([verb, *words]) == 0
    assert configs[0] == configs[1]
    plain = {key for key in VERBS[verb].model_fields if key not in GROUPS}
    assert plain <= {word.split("=")[0] for word in words}


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_a_verb_has_its_own_groups_alone(verb):
    shown = set(re.findall(r"^  (\w+)  +", PAGES[verb], re.MULTILINE)) & set(GROUPS)
    of_verb = set(GROUPS) if verb == "train" else set(GROUPS) & set(VERBS[verb].model_fields)
    assert shown == of_verb


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit_a_terminal(page):
    assert PAGES[page].endswith("\n")
    assert max(map(len, PAGES[page].splitlines())) <= 100


def test_there_are_examples_for_every_verb():
    assert {verb for verb, _ in EXAMPLES} == {"overview", *VERBS}
    assert len(EXAMPLES) >= 15


@pytest.mark.parametrize("line", sorted({line for _, line in EXAMPLES if "VERB" not in line}))
def test_examples_can_be_typed(line, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(cli, "_run", lambda *job, **more: ran.append(job))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    _, as_yaml = cli._compose("train", [], None)
    (tmp_path / "runs" / "latest" / "config.yaml").write_text(as_yaml)
    assert cli.main(shlex.split(line)[1:]) == 0
    assert {job[0] for job in ran} == {line.split()[1]}


def test_groups_are_those_of_the_package_and_of_the_own_folder(own_folder):
    promised = ("dataset", "augmentation", "model", "head", "freeze", "optimizer", "scheduler")
    assert {*promised, "trainer", "logger", "experiment"} <= set(GROUPS)
    assert groups(own_folder) == sorted([*GROUPS, "season"])


def test_options_are_files_in_the_order_of_their_numbers(own_folder):
    own, ours = group_options("model", own_folder), group_options("model")
    assert [name for name in own if name != "mine"] == ours
    assert "mine" in own
    sizes = [name for name in group_options("model") if re.fullmatch(r"resnet\d+", name)]
    assert sizes == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert group_options("season", own_folder) == ["spring"]
    assert group_options("no such group") == []


def test_help_shows_options_of_the_own_folder(own_folder):
    assert "mine" in words_of(verb_help("train", own_folder))
    assert "mine" not in words_of(verb_help("train"))


def test_every_verb_has_a_summary_and_a_file_of_defaults():
    assert list(usage._SUMMARIES) == list(usage._EXAMPLES) == list(VERBS)
    assert {path.stem for path in CONF.glob("*.yaml")} == set(VERBS)
