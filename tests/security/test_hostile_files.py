"""Weights, tables, split files and folders of options by people who mean harm.

Bundles and exports are in ``tests/exports/test_hostile.py``, runs in ``test_hostile_runs.py``.
Nothing in them runs, and each is refused in a few clear words, with status 2.
"""

import io
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

NESTED = "[" * 100_000
LONG = "9" * 10_000
STEERING = "\x1b]0;pwned\x07\x1b[2J\u202e"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


def train(*words):
    def typed(place, path):
        more = [word.format(path) for word in words]
        return ["train", *QUICK, f"dataset.root={place.images}", f"runs={place.folder}", *more]

    return typed


QUICK = ("model=nano", "model.image_size_px=32", "trainer=cpu", "dataset.workers=0")
WEIGHTS = train("model.weights={}")
SPLIT_FILE = train("dataset.split_file={}")
# Without images, so that what is only ignored ends there.
OPTIONS = train("config_dir={}", "experiment=evil", "dataset.root=/not/there")
TRANSFORMS = train("config_dir={}", "experiment=evil")
MANIFEST = train("dataset.manifest={}")


# How the file is made. Each gives what the user types, in a place.


def rows(*lines, header="path,label,split"):
    return "".join(f"{line}\r\n" for line in (header, *lines))


def file(verb, name, content):
    """Make one file, by a function of the place or of this content."""

    def make(place):
        path = place.folder / name
        made = content(place) if callable(content) else content
        path.write_bytes(made if isinstance(made, bytes) else made.encode())
        return verb(place, path)

    return make


def weights(name, evil, **options):
    return file(WEIGHTS, name, lambda place: place.pickled(evil, **options))


def parquet(columns, metadata=None):
    def content(place):
        table = pa.table(columns)
        if metadata is not None:  # a type that older Arrow unpickled: CVE-2023-47248
            evil = {b"ARROW:extension:name": b"arrow.py_extension_type"}
            evil[b"ARROW:extension:metadata"] = pickle.dumps(place.evil)
            table = table.cast(pa.schema([field.with_metadata(evil) for field in table.schema]))
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return sink.getvalue()

    return file(MANIFEST, "table.parquet", content)


def options(text, verb=OPTIONS):
    """Make a folder of options with an experiment, or with an option that it takes."""

    def make(place):
        folder = place.folder / "conf"
        (folder / "experiment").mkdir(parents=True)
        written = text.replace("CANARY", str(place.canary))
        (folder / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{written}")
        return verb(place, folder)

    return make


LEAVES = "leaves the data's root"

HOSTILE = {
    # Weights.
    "a pickle for weights": (weights("w.pth", "evil"), "mkdir"),
    "an eval for weights": (weights("w.pt", "evil_by_eval"), "eval"),
    "a legacy pickle for weights": (weights("w.bin", "evil", is_legacy=True), "mkdir"),
    "a bare pickle for weights": (weights("w.ckpt", "evil", is_bare=True), "model.weights"),
    "a pickle called safetensors": (weights("w.safetensors", "evil"), "no safetensors file"),
    "steering in the name of weights": (file(WEIGHTS, f"{STEERING}.pth", b"x"), "model.weights"),
    # Tables.
    **{
        f"a table with {what}": (file(MANIFEST, "t.csv", rows(line, header="path,label")), named)
        for what, line, named in (
            ("an absolute path", "/etc/passwd,a", LEAVES),
            ("a path upwards", "../x.png,a", LEAVES),
            ("a NUL", "a\0.png,a", LEAVES),
            ("a large cell", f"{'a' * 200_000},a", "field larger"),
            ("steering", f"../{STEERING},a", LEAVES),
            ("one class that steers", f"a.png,{STEERING}", "has 1 classes"),
        )
    },
    "a pickle called .csv": (file(MANIFEST, "t.csv", lambda p: pickle.dumps(p.evil)), "t.csv"),
    "a pickle called .parquet": (
        file(MANIFEST, "t.parquet", lambda p: pickle.dumps(p.evil)),
        "no Parquet",
    ),
    "a path upwards in Parquet": (parquet({"path": ["../x"], "label": ["a"]}), LEAVES),
    "a NUL in Parquet": (parquet({"path": ["a\0"], "label": ["a"]}), LEAVES),
    "bytes in Parquet": (parquet({"path": [b"\xff"], "label": ["a"]}), "no Parquet"),
    "lists in Parquet": (parquet({"path": [["a"]], "label": ["a"]}), "no Parquet"),
    "a pickled type in Parquet": (parquet({"path": ["../x"], "label": ["a"]}, 1), "table.parquet"),
    **{
        f"a split file with {what}": (file(SPLIT_FILE, "s.csv", rows(line)), named)
        for what, line, named in (
            ("an absolute path", "/etc/passwd,lying,val", LEAVES),
            ("a path upwards", "../x,lying,val", LEAVES),
            ("a NUL", "a\0,lying,val", LEAVES),
            ("an image that is not there", "=1+1.png,lying,val", "split_file"),
            ("steering", f"{STEERING},lying,val", "split_file"),
        )
    },
    # Folders of options.
    "_target_ in an option": (options("_target_: os.system\n"), "_target_"),
    "_target_ in a group of an option": (options("optimizer:\n  _target_: x\n"), "_target_"),
    "an object in an option": (options("x: !!python/object/apply:os.mkdir [CANARY]\n"), "tag"),
    # Hydra would make these if it ran the program; it only composes.
    **{
        f"{what} in an option": (options(f"hydra:\n  {yaml}\n"), "/not/there")
        for what, yaml in (
            ("a callback", "callbacks: {x: {_target_: os.mkdir, path: CANARY}}"),
            ("logging", "job_logging: {handlers: {x: {(): os.mkdir, path: CANARY}}}"),
        )
    },
    "a bomb in an option": (options(BOMB), "alias"),
    "nesting in an option": (options(f"seed: {NESTED}\n"), "nested too deeply"),
    "a long number in an option": (options(f"seed: {LONG}\n"), "digits"),
    "a transform in an option": (
        options("augmentation:\n  transforms: [{name: os.system}]\n", TRANSFORMS),
        "os.system",
    ),
    "a transform with _target_": (
        options("augmentation:\n  transforms: [{_target_: os.system}]\n", TRANSFORMS),
        "transforms[0]",
    ),
}


def test_there_are_at_least_30():
    print(f"{len(HOSTILE)} hostile files")
    assert len(HOSTILE) >= 30


@pytest.mark.parametrize("evil", ["evil", "evil_by_eval"])
def test_what_is_dangerous_is_dangerous(place, evil):
    pickle.loads(pickle.dumps(getattr(place, evil)))
    assert place.canary.is_dir()


PICKLES = [name for name in HOSTILE if "pickle" in name or "eval" in name]


@pytest.mark.parametrize(
    ("name", "is_forced"),
    [*((name, False) for name in HOSTILE), *((name, True) for name in PICKLES)],
)
def test_nothing_runs_and_the_user_is_told(place, assert_refused, monkeypatch, name, is_forced):
    if is_forced:  # torch is told to unpickle everything
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    make, named = HOSTILE[name]
    assert_refused(make(place), named)
