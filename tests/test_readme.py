"""Every command of the README is one that the tool accepts."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import finetune.cli
from finetune.cli import main
from finetune.config import FINDINGS
from finetune.data.auditing.findings import RULES
from finetune.usage import group_options, groups

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """Record validated configs instead of running verbs; `my_conf` and `~` are in a folder."""
    configs: list[object] = []

    def take(name: str) -> SimpleNamespace:
        return SimpleNamespace(run=lambda config, _, **more: configs.append((name, config)))

    monkeypatch.setattr(finetune.cli, "import_module", take)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_conf" / "experiment" / "roses.yaml").write_text(yaml)
    run = tmp_path / "runs" / "latest"
    run.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return configs


@pytest.mark.parametrize("command", commands())
def test_a_command_is_accepted(
    command: str, accepted: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    program, verb, *words = shlex.split(command, comments=True)
    assert program in ("make", "finetune")
    if program == "make":
        assert verb in MAKE_TARGETS
        if verb in ("test", "check", "lock"):
            return
        words = [part for word in words for part in split_arguments(word)]
    assert main([verb, *words]) == 0, capsys.readouterr().err
    assert accepted or "--help" in words


def split_arguments(word: str) -> list[str]:
    return shlex.split(word.removeprefix("ARGS=")) if word.startswith("ARGS=") else [word]


def test_there_are_commands() -> None:
    assert len(commands()) >= 20


def test_the_table_of_groups_is_complete() -> None:
    rows = dict(re.findall(r"^\| `([a-z]+)` \| (.*?) \|", README, re.MULTILINE))
    assert set(rows) == {*groups(), "experiment"}
    for group, text in rows.items():
        for option in group_options(group):
            assert f"`{option}`" in text, (group, option)


def test_every_finding_is_documented_with_its_severity() -> None:
    page = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| (error|warning|info) \| (.+) \| (.+) \|$", page, re.MULTILINE
    )
    documented = {name: severity for name, severity, _, _ in rows}
    assert documented == {name: severity for name, (severity, _) in RULES.items()}
    assert set(documented) == set(FINDINGS)


def test_python_blocks_compile() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    compiled: list[Callable[..., object] | object] = [
        compile(block, "README.md", "exec") for block in blocks
    ]
    assert compiled


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) >= 3
    for link in links:
        assert (ROOT / link).exists(), link
