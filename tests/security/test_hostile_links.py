"""Links in a run of somebody else: what this tool writes there does not go through them."""

import pytest

from finetune.cli import main

PRECIOUS = "precious"
READ = ("run.json", "checkpoints/best.ckpt")
"""What must read well, or the run does not go on."""
WRITTEN = {
    "evaluate": (
        ["split=val", "workers=0", "evidence.report=true", "evidence.pictures=0"],
        [
            "predictions_val.csv",
            "evaluation_val.json",
            "evaluation_val.png",
            "evaluation_val.html",
        ],
    ),
    "the lock": ([], [".lock"]),
    "train": (
        [],
        [
            "metrics.csv",
            "metrics.json",
            "run.json",
            "curves.png",
            "confusion_matrix.png",
            "model.json",
            "model.safetensors",
            "model.ts",
            "model.ts.check.json",
            "README.md",
            "predictions_val.csv",
            "predictions_test.csv",
            "checkpoints/best.ckpt",
        ],
    ),
}


@pytest.mark.parametrize("verb", WRITTEN)
def test_a_link_is_replaced_or_refused_and_never_written_through(place, capsys, verb):
    more, names = WRITTEN[verb]
    run = place.copy_run(is_finished=verb == "evaluate")
    victims = place.folder / "victims"
    victims.mkdir()
    for name in names:
        victim = victims / name.replace("/", "_")
        content = (run / name).read_bytes() if name in READ else PRECIOUS.encode()
        victim.write_bytes(content)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
    before = {path.name: path.read_bytes() for path in victims.iterdir()}
    is_to_go_on = verb != "evaluate"
    status = main(["train", f"resume={run}"] if is_to_go_on else ["evaluate", f"run={run}", *more])
    error = capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in victims.iterdir()} == before
    assert status in (0, 2), error
    assert "Traceback" not in error
    print(f"{len(names)} links; {verb}: status {status}; {error.strip()[:200]}")
