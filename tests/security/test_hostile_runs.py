"""A run directory by people who mean harm, which goes on, is measured, or is compared.

Nothing in its settings, record, figures, tables and checkpoints runs, and each is refused in a few
clear words that name what is wrong, with status 2.
"""

import json
import os

import pytest

from finetune.cli import main
from finetune.errors import ModelError
from finetune.training.checkpoints import AtomicCheckpointIO, load_checkpoint

NESTED = "[" * 100_000
LONG = "9" * 10_000
STEERING = "\x1b]0;pwned\x07\x1b[2J\u202e"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
TARGET = {"_target_": "os.system"}


# What the user types.


def resume(place, run):
    return ["train", f"resume={run}"]


def evaluate(place, run):
    return ["evaluate", f"run={run}", "split=val", "workers=0", "evidence=none"]


def compare(place, run):
    return ["compare", str(place.finished), str(run), "split=val", f"output={place.folder / 'out'}"]


# How the file is made. Each gives what the user types, in a place.


def of_run(verb, name, change):
    """Change the text of a file of a run by a function, or replace it by a text or bytes."""

    def make(place):
        run = place.copy_run(is_finished=verb is not resume)
        path = run / name
        content = change(path.read_text()) if callable(change) else change
        path.unlink()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return verb(place, run)

    return make


def config(old, new):
    return of_run(resume, "config.yaml", lambda text: text.replace(old, new, 1))


def more_config(text):
    return of_run(resume, "config.yaml", lambda own: own + text)


def typed_by_a_python_tag(tag):
    def make(place):
        run = place.copy_run(is_finished=False)
        with (run / "config.yaml").open("a") as file:
            file.write(f'evil: !!python/{tag} ["{place.canary}"]\n')
        return resume(place, run)

    return make


def put(verb, name, **values):
    """Put values into a JSON file of a run."""
    return of_run(verb, name, lambda text: json.dumps({**json.loads(text), **values}))


def record(verb, **values):
    return put(verb, "run.json", **values)


def recipe(**values):
    named = {key.replace("__", "."): value for key, value in values.items()}
    return of_run(
        resume,
        "run.json",
        lambda text: json.dumps((own := json.loads(text)) | {"recipe": {**own["recipe"], **named}}),
    )


def rows(*lines, header="path,label,split"):
    return "".join(f"{line}\r\n" for line in (header, *lines))


def link(verb, name, target):
    def make(place):
        run = place.copy_run(is_finished=verb is not resume)
        (run / name).unlink()
        (run / name).symlink_to(target)
        return verb(place, run)

    return make


def pipe(verb, name):
    def make(place):
        run = place.copy_run(is_finished=verb is not resume)
        (run / name).unlink()
        os.mkfifo(run / name)
        return verb(place, run)

    return make


def write_checkpoint(place, path, *, evil="evil", is_sealed=True, **options):
    """Write a checkpoint that is a pickle; with the checksum of ours, if wanted."""
    if is_sealed:
        whole = load_checkpoint(place.finished / "checkpoints" / "last.ckpt")
        path.unlink()
        AtomicCheckpointIO().save_checkpoint({**whole, "x": getattr(place, evil)}, path)
    else:
        path.unlink()
        path.write_bytes(place.pickled(evil, **options))


CHECKPOINTS = {
    "a pickle": {"is_sealed": False},
    "an eval": {"is_sealed": False, "evil": "evil_by_eval"},
    "a legacy pickle": {"is_sealed": False, "is_legacy": True},
    "a bare pickle": {"is_sealed": False, "is_bare": True},
    "a pickle with our checksum": {},
    "an eval with our checksum": {"evil": "evil_by_eval"},
}
LEAVES = "leaves the data's root"
UNREADABLE = "cannot be read"
RUN_JSON, METRICS = "run.json is damaged", "metrics.json is damaged"

HOSTILE = {
    # Settings of a run that goes on.
    "_target_ in settings": (more_config("_target_: os.system\n"), "_target_"),
    "_target_ in a group": (config("optimizer:\n", "optimizer:\n  _target_: x\n"), "_target_"),
    "_target_ for a number": (config("seed: 0", f"seed: {json.dumps(TARGET)}"), "seed"),
    "object/apply": (typed_by_a_python_tag("object/apply:os.mkdir"), "constructor"),
    "object/new": (typed_by_a_python_tag("object/new:os.mkdir"), "constructor"),
    "python/name": (config("seed: 0", "seed: !!python/name:os.system"), "constructor"),
    "python/module": (config("seed: 0", "seed: !!python/module:os"), "constructor"),
    "an unknown resolver": (config("seed: 0", "seed: ${python:1}"), "seed"),
    "a missing variable": (config("seed: 0", "seed: ${oc.env:NOT_THERE}"), "NOT_THERE"),
    "settings in a circle": (config("seed: 0", "seed: ${seed}"), "seed"),
    "nested interpolation": (
        config("seed: 0", f"seed: {'${oc.env:' * 2000}X{'}' * 2000}"),
        "nested too deeply",
    ),
    "Hydra's own keys": (more_config("hydra:\n  searchpath: [file:///tmp]\n"), "hydra"),
    "a defaults list": (more_config("defaults: [evil]\n"), "defaults"),
    "a bomb of aliases": (more_config(BOMB), "alias"),
    "an alias of itself": (config("seed: 0", "seed: &a [*a]"), "config.yaml"),
    "nested settings": (of_run(resume, "config.yaml", NESTED), UNREADABLE),
    "a nested value": (config("seed: 0", f"seed: {'[' * 900}{']' * 900}"), "config.yaml"),
    "a nested mapping": (config("seed: 0", f"seed: {'{a: ' * 150}1{'}' * 150}"), "config.yaml"),
    "a long number": (config("seed: 0", f"seed: {LONG}"), UNREADABLE),
    "large settings": (more_config("#" * 2_000_000), "larger"),
    "a huge seed": (config("seed: 0", f"seed: {'9' * 30}"), "seed"),
    "settings that are no text": (of_run(resume, "config.yaml", b"\xff\xfe\0"), UNREADABLE),
    "a NUL in settings": (more_config("\0"), UNREADABLE),
    "a list of settings": (of_run(resume, "config.yaml", "[1, 2]"), "no settings"),
    "two documents": (more_config("---\nseed: 1\n"), UNREADABLE),
    "the same key twice": (more_config("seed: 1\n"), UNREADABLE),
    "steering in a value": (config("backbone: nano", json.dumps(f"backbone: {STEERING}")), ""),
    "steering in a key": (more_config(f"{json.dumps(STEERING)}: 1\n"), "no such key"),
    "a device for settings": (link(resume, "config.yaml", "/dev/zero"), "no config.yaml"),
    "a pipe for settings": (pipe(resume, "config.yaml"), "no config.yaml"),
    # The record of a run.
    "classes that are a number": (record(resume, class_names=5), RUN_JSON),
    "classes that are numbers": (record(resume, class_names=[1, 2]), RUN_JSON),
    "classes that are lists": (record(resume, class_names=[["a"], ["b"]]), RUN_JSON),
    "classes that are keys": (record(resume, class_names={"lying": 1, "standing": 2}), RUN_JSON),
    "a class twice": (record(resume, class_names=["lying"] * 2 + ["standing"]), RUN_JSON),
    "other classes": (record(resume, class_names=["a", "b"]), "has the class `lying`"),
    "a million classes": (
        record(resume, class_names=[str(index) for index in range(10**6)]),
        "has the class `lying`",
    ),
    "a recipe that is a list": (record(resume, recipe=[1]), RUN_JSON),
    "_target_ in a recipe": (recipe(_target_="os.system"), "_target_"),
    "_target_ in a group of a recipe": (recipe(optimizer___target_="x"), "optimizer._target_"),
    "a class's attribute in a recipe": (recipe(__class__="x"), "recipe"),
    "a path in a recipe": (recipe(augmentation__transforms="../../../../etc/passwd"), "option"),
    "transforms in a recipe": (recipe(augmentation__transforms=[{"name": "os.system"}]), "option"),
    "text for a rate": (recipe(optimizer__weight_decay="x"), "optimizer.weight_decay"),
    "a huge rate": (recipe(optimizer__weight_decay=10**400), "optimizer.weight_decay"),
    "a policy that is a mapping": (recipe(freeze__policy={"a": 1}), "freeze.policy"),
    "a recipe that lacks all": (record(resume, recipe={}), "recipe"),
    "a seed of infinity": (record(evaluate, seed=float("inf")), RUN_JSON),
    "a seed that is text": (record(evaluate, seed="x"), RUN_JSON),
    "data with a NUL": (record(resume, data="a\0b"), RUN_JSON),
    "data with a long name": (record(resume, data="a" * 100_000), RUN_JSON),
    "data that steers": (record(evaluate, data=STEERING), "none of the"),
    "data elsewhere": (record(resume, data="../../.."), "are gone from"),
    "data at an address": (record(resume, data="https://evil.example/x"), "are gone from"),
    "columns that are numbers": (record(evaluate, columns={"path": 1}), RUN_JSON),
    "_target_ in columns": (record(evaluate, columns=TARGET), "columns"),
    "a list of decisions": (record(compare, decisions=[1]), RUN_JSON),
    "a device that is a mapping": (record(compare, decisions={"device": {}}), RUN_JSON),
    "a command with an open quote": (record(evaluate, command="finetune 'x"), RUN_JSON),
    **{
        f"{what} for a record, {verb.__name__}": (of_run(verb, "run.json", content), UNREADABLE)
        for verb in (resume, evaluate, compare)
        for what, content in (("nesting", NESTED), ("a long number", LONG), ("bytes", b"\xff"))
    },
    "a device for a record": (link(evaluate, "run.json", "/dev/zero"), "it is no file"),
    "a pipe for a record": (pipe(compare, "run.json"), "it is no file"),
    # Its figures.
    "nested figures": (of_run(evaluate, "metrics.json", NESTED), UNREADABLE),
    "a list of figures": (of_run(compare, "metrics.json", "[]"), "no figures"),
    "figures of a list": (put(evaluate, "metrics.json", val=[1]), METRICS),
    "a point without a threshold": (
        put(evaluate, "metrics.json", val={"operating_points": [{}]}),
        METRICS,
    ),
    "a threshold of infinity": (
        put(evaluate, "metrics.json", val={"operating_points": [{"threshold": 1e999, "rule": ""}]}),
        METRICS,
    ),
    "seconds that are text": (put(compare, "metrics.json", seconds="x"), METRICS),
    "seconds that are none": (put(compare, "metrics.json", seconds=float("nan")), METRICS),
    "huge seconds": (put(compare, "metrics.json", seconds=10**400), METRICS),
    "a device for figures": (link(compare, "metrics.json", "/dev/zero"), "1 finished run"),
    # Its model, where it is compared.
    "nested description": (of_run(compare, "model.json", NESTED), UNREADABLE),
    "_target_ in a description": (put(compare, "model.json", **TARGET), "_target_"),
    "a pipe for a description": (pipe(compare, "model.json"), "it is no file"),
    # Its images and answers.
    **{
        f"{what}, {verb.__name__}": (of_run(verb, "split.csv", rows(line)), named)
        for verb in (resume, evaluate, compare)
        for what, line, named in (
            ("an absolute path", "/etc/passwd,lying,val", LEAVES),
            ("a path upwards", "../../../etc/passwd,lying,val", LEAVES),
            ("a path of Windows", "C:\\x.png,lying,val", LEAVES),
            ("a NUL in a path", "a\0b.png,lying,val", LEAVES),
            ("steering in a path", f"../{STEERING},lying,val", LEAVES),
            ("a large cell", f"{'a' * 200_000},lying,val", "field larger"),
            ("an open quote", '"a.png,lying,val', "unexpected end"),
            ("a split that steers", f"a.png,lying,{STEERING}", "got split"),
        )
    },
    "a formula for a path": (
        of_run(resume, "split.csv", rows("=cmd|' /C calc'!A0.png,lying,val")),
        "are gone from",
    ),
    "an unknown class to go on with": (
        of_run(resume, "split.csv", rows("lying/000.png,evil,val")),
        "has the class `evil`",
    ),
    "an unknown class to measure": (
        of_run(evaluate, "split.csv", rows("lying/000.png,evil,val")),
        'does not know the class "evil"',
    ),
    "a header that steers": (
        of_run(evaluate, "split.csv", rows("a,b,c", header=f"{STEERING},label,split")),
        "no column `path`",
    ),
    **{
        f"answers that are {what}": (of_run(compare, "predictions_val.csv", change), "the answers")
        for what, change in (
            ("none", lambda text: text.replace(",0.", ",nan0.")),
            ("not finite", lambda text: text.replace(",0.", ",9e999")),
            ("below zero", lambda text: text.replace(",0.", ",-5.")),
            ("code", "import os"),
            ("no text", b"\xff\xfe"),
            ("too large", lambda text: text.splitlines()[0] + "\r\n" + "a" * 200_000),
        )
    },
}


def test_there_are_at_least_90():
    print(f"{len(HOSTILE)} hostile files of runs, and {len(CHECKPOINTS)} checkpoints")
    assert len(HOSTILE) >= 90


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_runs_and_the_user_is_told(place, assert_refused, name):
    make, named = HOSTILE[name]
    assert_refused(make(place), named)


@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_no_checkpoint_is_unpickled(place, connections, monkeypatch, name, is_forced):
    if is_forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = place.copy_run() / "checkpoints" / "last.ckpt"
    write_checkpoint(place, path, **CHECKPOINTS[name])
    with pytest.raises(ModelError, match=r"last\.ckpt is not a checkpoint of finetune"):
        load_checkpoint(path)
    assert not place.canary.exists()
    assert connections == []


@pytest.mark.parametrize(
    "change",
    [
        {"state_dict": [1]},
        {"state_dict": {"classifier.head.linear.bias": "x"}},
        {"callbacks": [1]},
        {"loops": 5},
        {"optimizer_states": {}},
        {"lr_schedulers": 5},
        {"global_step": "x"},
        {"epoch": [1]},
        {"pytorch-lightning_version": 5},
    ],
    ids=str,
)
def test_a_checkpoint_of_other_kinds_is_none(place, change):
    path = place.copy_run() / "checkpoints" / "last.ckpt"
    whole = load_checkpoint(path)
    path.unlink()
    AtomicCheckpointIO().save_checkpoint({**whole, **change}, path)
    with pytest.raises(ModelError, match="is not a checkpoint of finetune"):
        load_checkpoint(path)


def test_a_run_whose_checkpoints_are_all_hostile_runs_none_of_them(place, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    run = place.copy_run(is_finished=False)
    for name in ("last.ckpt", "best.ckpt", "probe.ckpt"):
        (run / "checkpoints" / name).touch()
        write_checkpoint(place, run / "checkpoints" / name)
    status = main(resume(place, run))
    shown = capsys.readouterr()
    assert not place.canary.exists()
    # Begun again, or refused for the probe that it began with.
    assert status in (0, 2)
    assert "last.ckpt is not a checkpoint of finetune" in "".join(
        (shown.out + shown.err).replace("\n", " ")
    )
    assert "Traceback" not in shown.err
