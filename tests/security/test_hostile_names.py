"""Names that say something to whoever shows them: to a terminal, a browser, a spreadsheet."""

import csv
import html
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest
from rich.console import Console
from rich.table import Table

from finetune.cli import main
from finetune.terminal import guard, open_console, printable

NAMES = [
    "<script>alert(1)<_script>",
    '"><img src=x onerror=alert(1)>',
    "[bold red]x[_bold red]",
    "[link=https:__evil.example]x[_link]",
    "=cmd|calc",
    "@SUM(1)",
    "+1",
    "-1",
    "\tx",
    "esc\x1b[2J\x1b]0;pwned\x07",
    "c1\x9b2Jx",
    "two\nlines",
    "carriage\rreturn",
    "right\u202eto left",
    "line\u2028separator",
    "![x](javascript:alert(1))",
    "`$(touch canary)`",
    "{{ 7 * 7 }}",
    "${oc.env:HOME}",
    "%s%n{0}",
]
STEERING = set("\x1b\x07\x9b\r\u202e\u2028\0")


@pytest.fixture(scope="module")
def named_run(tmp_path_factory):
    """Train on images whose files and folders have such names; give the run, and what was said."""
    root, runs = tmp_path_factory.mktemp("names"), tmp_path_factory.mktemp("runs")
    for label, name in enumerate(NAMES):
        folder = root / name
        folder.mkdir()
        for index in range(6):
            pixels = np.random.default_rng([label, index]).integers(0, 256, (24, 24), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{index}{NAMES[(label + index) % 20]}.png")
    (root / NAMES[0] / f"{NAMES[9]}.png").write_bytes(b"no image")
    return root, runs / "names" / "first"


@pytest.fixture(scope="module")
def said(named_run, quick):
    root, run = named_run
    return [f"dataset.root={root}", f"runs={run.parent.parent}", "name=first", "dataset.name=names"]


def test_names_are_printable_and_nothing_else_is_lost():
    for name in NAMES:
        shown = printable(name)
        assert not STEERING & set(shown), ascii(shown)
        assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in shown)
    assert printable("ant, bee – Ä 蜂 👩‍🔬\n\t") == "ant, bee – Ä 蜂 👩‍🔬\n\t"
    assert printable("\x1b[2J") == "\\x1b[2J"


def test_a_guarded_console_keeps_its_own_colours():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60)
    guard(console)
    guard(console)
    table = Table()
    table.add_column("name")
    table.add_row("\x1b]0;pwned\x07[red]red[/red]")
    console.print("[bold]a\x1b[2Jb[/bold]", table)
    shown = file.getvalue()
    assert "\x1b[1m" in shown  # bold
    assert "\x1b[31mred" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]0" not in shown
    assert shown.count("\\x1b") == 2
    assert open_console(stderr=True).stderr


def test_train_says_no_name_to_a_terminal(named_run, said, quick, capsys, monkeypatch):
    monkeypatch.chdir(named_run[0].parent)
    words = [*quick, *said, "trainer.epochs=1", "evidence.report=true", "evidence.resamples=20"]
    assert main(["train", *words, "evidence.pictures=4"]) == 0
    output = capsys.readouterr()
    assert not STEERING & set(output.out + output.err)
    assert "\\x1b" in output.out
    assert not (named_run[0].parent / "canary").exists()


def test_other_verbs_neither(named_run, said, capsys, tmp_path):
    root, run = named_run
    for words in (
        ["inspect", f"dataset.root={root}", f"output={tmp_path}"],
        ["evaluate", f"run={run}", "workers=0", "evidence=none"],
        ["predict", f"run={run}", f"input={root}", f"output={tmp_path / 'o.csv'}", "workers=0"],
        ["compare", str(run), str(run), f"output={tmp_path}"],
        ["evaluate", f"run={run}", f"root={root / NAMES[9]}"],
    ):
        main(words)
        output = capsys.readouterr()
        assert not STEERING & set(output.out + output.err), words[0]


class Tags(HTMLParser):
    """Collects elements, attributes and addresses of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_report_shows_names_as_text(named_run):
    _, run = named_run
    page = (run / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not [tag for tag, attrs in tags.found if any(key.startswith("on") for key in attrs)]
    assert sum(tag == "script" for tag, _ in tags.found) <= 1
    addresses = [
        value or ""
        for _, attrs in tags.found
        for key, value in attrs.items()
        if key in ("href", "src", "action")
    ]
    assert not [address for address in addresses if not address.startswith(("#", "data:"))]
    assert html.escape(NAMES[0]) in page or html.escape(NAMES[0], quote=False) in page
    assert "49" not in re.findall(r"\{\{ 7 \* 7 \}\}|>49<", page)


def test_the_card_shows_names_as_text(named_run):
    _, run = named_run
    card = (run / "README.md").read_text()
    assert "<script" not in card
    assert "<img" not in card
    assert re.findall(r"(?<!\\)\]\(javascript", card) == []
    assert not STEERING & set(card), ascii(sorted(STEERING & set(card)))


@pytest.mark.parametrize("table", ["predictions_val.csv", "label_issues.csv"])
def test_a_spreadsheet_runs_nothing(named_run, table):
    _, run = named_run
    with (run / table).open(newline="") as file:
        rows = list(csv.reader(file))
    cells = [cell for row in rows for cell in row]
    assert len(rows) > 1 or table == "label_issues.csv"
    formulas = [cell for cell in cells if cell[:1] in "=@\t\r" and cell]
    assert formulas == []
    signed = [cell for cell in cells if cell[:1] in "+-" and cell]
    assert [cell for cell in signed if not re.fullmatch(r"[+-][\d.e+-]+", cell)] == []


def test_the_export_gives_the_names_back(named_run):
    from finetune.exports.bundle import load_model

    _, run = named_run
    assert sorted(load_model(run).class_names) == sorted(NAMES)
    shutil.rmtree(run)
