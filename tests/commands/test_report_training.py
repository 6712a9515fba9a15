"""How the model of a report came about, read from its run directory."""

import json
from pathlib import Path

from finetune.commands.report_training import (
    deploy,
    facts,
    read_epochs,
    read_findings,
    reproduce,
)
from finetune.exports.bundle import load_model
from finetune.run import RunDirectory


def test_a_folder_without_records_has_nothing_to_tell(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert read_epochs(run) == ()
    assert read_findings(run) == ("", ())
    assert reproduce(run, {}) == ()


def test_undefined_numbers_of_an_epoch_stay_undefined(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.epochs.write_text("epoch,train_loss,val_auroc\n0,,nan\n1,0.5,0.75\n")
    assert read_epochs(run) == (
        {"epoch": 0.0, "train_loss": None, "val_auroc": None},
        {"epoch": 1.0, "train_loss": 0.5, "val_auroc": 0.75},
    )


def test_findings_are_those_of_the_audit(trained: Path, tmp_path: Path) -> None:
    audit = json.loads((trained / "audit.json").read_text())
    finding = {
        "name": "near_duplicates",
        "severity": "info",
        "paths": [f"{i}.png" for i in range(9)],
        "message": "9 alike.",
        "remedy": "Look.",
        "accepted": False,
    }
    audit["findings"] = [finding, {**finding, "accepted": True}]
    run = RunDirectory(tmp_path)
    run.audit.write_text(json.dumps(audit))
    text, (first, second) = read_findings(run)
    assert text.startswith("80 images were decoded")
    assert (first.name, first.severity, first.count) == ("near duplicates", "note", 9)
    assert first.examples == tuple(f"{i}.png" for i in range(5))
    assert (first.remedy, second.remedy) == ("Look.", "You accepted this.")


def test_what_repeats_and_deploys_it_can_be_typed(trained: Path) -> None:
    run = RunDirectory(trained)
    record = json.loads(run.record.read_text())
    command, again = reproduce(run, record)
    assert command == record["command"]
    assert again.endswith(f"dataset.split_file={run.split}")
    assert "name=" not in again
    folded = {"command": "finetune train dataset.folds=2 dataset.fold=all"}
    assert reproduce(run, folded) == (folded["command"],)
    blocks = dict(deploy(run))
    for title in ("In Python", "In Python, with torch alone"):
        compile(blocks[title], title, "exec")
        assert str(trained) in blocks[title]
    rows = dict(facts(record, load_model(trained), 125.0))
    assert rows["time"] == "2 min 5 s"
    assert rows["seed"] == "0"
    assert "torch" in rows
