import csv
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.discover import Sample
from finetune.data.manifest import read_manifest
from finetune.errors import DataError


def read(path, **arguments):
    return read_manifest(
        path,
        **{
            "root": None,
            "path_column": "path",
            "label_column": "label",
            "split_column": None,
            "group_column": None,
            "label_separator": None,
            **arguments,
        },
    )


def read_text(tmp_path, text, name="labels.csv", **arguments):
    file = tmp_path / name
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    return read(file, **arguments)


def test_plain(tmp_path):
    folder = read_text(tmp_path, "path,label\nb/1.jpg,10\na/2.jpg,2\n")
    assert folder.root == tmp_path
    assert folder.class_names == ("2", "10")
    assert folder.samples == (Sample("a/2.jpg", ("2",), None), Sample("b/1.jpg", ("10",), None))
    assert folder.skipped == ()


def test_all_columns(tmp_path):
    folder = read_text(
        tmp_path,
        "path,label,split,group\n1.jpg,a,Train,p1\n2.jpg,b,train,\n3.jpg,a,VALID,p2\n4.jpg,b,test,1.0\n",
    )
    assert folder.samples == (
        Sample("1.jpg", ("a",), "train", "p1"),
        Sample("2.jpg", ("b",), "train", None),
        Sample("3.jpg", ("a",), "val", "p2"),
        Sample("4.jpg", ("b",), "test", "1.0"),
    )


def test_columns_by_name(tmp_path):
    (tmp_path / "images").mkdir()
    folder = read_text(
        tmp_path,
        "file,diagnosis,fold,patient,split,group\n1.jpg,a,train,p,x,y\n2.jpg,b,train,q,x,y\n",
        root=tmp_path / "images",
        path_column="file",
        label_column="diagnosis",
        split_column="fold",
        group_column="patient",
    )
    assert folder.root == tmp_path / "images"
    assert [(s.split, s.group) for s in folder.samples] == [("train", "p"), ("train", "q")]


def test_spaces_around_words_do_not_count(tmp_path):
    text = 'path , split,label\n1.jpg, train ,"a,b "\n2.jpg,train, c \n'
    folder = read_text(tmp_path, text)
    assert [(s.path, s.labels, s.split) for s in folder.samples] == [
        ("1.jpg", ("a,b",), "train"),
        ("2.jpg", ("c",), "train"),
    ]


def test_parquet(tmp_path):
    columns = {
        "path": ["1.jpg", "2.jpg", "3.jpg"],
        "label": pa.array([10, 2, 10], pa.int8()),
        "split": ["train", "train", "val"],
        "group": pa.array([1.0, None, float("nan")]),
    }
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    folder = read(tmp_path / "labels.parquet")
    assert folder.class_names == ("2", "10")
    assert [(s.split, s.group) for s in folder.samples] == [
        ("train", "1"),
        ("train", None),
        ("val", None),
    ]
    pq.write_table(pa.table({**columns, "path": ["1.jpg"] * 3}), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"row 2: `1.jpg` came before, at .*row 1;"):
        read(tmp_path / "twice.parquet")


def test_a_root_that_is_not_there(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"image: no such folder. Did you mean `images`"):
        read_text(tmp_path, "path,label\n1.jpg,a\n", root=tmp_path / "image")


def test_paths_are_tidied(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    text = f"path,label\n./a//1.jpg,a\nb/../2.jpg,b\n{root}/3.jpg,a\n{tmp_path}/link/4.jpg,b\n"
    folder = read_text(tmp_path, text, root=tmp_path / "link")
    assert [sample.path for sample in folder.samples] == ["2.jpg", "3.jpg", "4.jpg", "a/1.jpg"]


def test_paths_of_windows(tmp_path):
    folder = read_text(tmp_path, "path,label\na\\1.jpg,a\nb\\2.jpg,b\n")
    assert [sample.path for sample in folder.samples] == ["a/1.jpg", "b/2.jpg"]
    folder = read_text(tmp_path, "path,label\na\\1.jpg,a\nb/2.jpg,b\n")
    assert [sample.path for sample in folder.samples] == ["a\\1.jpg", "b/2.jpg"]


def test_several_labels(tmp_path):
    folder = read_text(
        tmp_path, "path,label\n1.jpg,b10 |b2|b2|\n2.jpg,\n3.jpg,a\n", label_separator="|"
    )
    assert [sample.labels for sample in folder.samples] == [("b2", "b10"), (), ("a",)]
    assert folder.class_names == ("a", "b2", "b10")
    alone = read_text(tmp_path, "path,label\n1.jpg,a|b\n2.jpg,c\n")
    assert alone.class_names == ("a|b", "c")


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("path,label\n1.jpg,a\n", {}, r'the column `label` has 1 classes \("a"\)'),
        ("path,label\n1.jpg,\n", {"label_separator": "|"}, r"has 0 classes \(none\)"),
        ("path,label\n1.jpg,a\n2.jpg,\n", {}, "line 3: `2.jpg` has no label"),
        ("path,label\n1.jpg,a\n2.jpg,b\n1.jpg,b\n", {}, "line 4: `1.jpg` came .*line 2; exp"),
        (
            "path,label\n1.jpg,a\n./1.jpg,b\n",
            {"label_separator": "|"},
            "line 3: `1.jpg` came before",
        ),
        ("path,label\n1.jpg,a\n,b\n", {}, "line 3: the path is empty"),
        ("path,label\n../1.jpg,a\n", {}, r"line 2: `../1.jpg` leaves the data's root"),
        ("path,label\n/etc/passwd,a\n", {}, "leaves the data's root"),
        ("path,label\nC:\\1.jpg,a\n", {}, "leaves the data's root"),
        ("path,label,split\n1.jpg,a,train\n2.jpg,b,\n", {}, "`2.jpg`, have none; expected all"),
        ("path,label,split\n1.jpg,a,dev\n", {}, "line 2: got split `dev`, expected one of train"),
        (
            "path,label,split\n1.jpg,cats,train\n2.jpg,cat,val\n",
            {},
            "val has the class cat, which train lacks; .* Did you mean `cats`",
        ),
        (
            "path,label\n1.jpg,a\n",
            {"split_column": "fold"},
            "no column `fold`; got path, label",
        ),
        (
            "path,label,patiend\n1.jpg,a,p\n",
            {"group_column": "patient"},
            "no column `patient`.*Did you mean `patiend`",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, text, arguments, message):
    with pytest.raises(DataError, match=f"labels.csv.*{message}"):
        read_text(tmp_path, text, **arguments)


def test_one_class_is_enough_to_measure(tmp_path):
    assert len(read_text(tmp_path, "path,label\n1.jpg,a\n", min_classes=1).samples) == 1


PROGRAM = """
import json, re, resource, sys, time
from pathlib import Path
from finetune.data.manifest import read_manifest
from finetune.data.splits import assign_splits
folder = read_manifest(Path(sys.argv[1]), root=None, path_column="path", label_column="label",
                       split_column=None, group_column=None, label_separator=None)
samples = assign_splits(folder.samples, val_fraction=0.2, test_fraction=0.1, seed=0)
homes, images = {}, 0
for sample in samples:
    homes.setdefault(sample.group, set()).add(sample.split)
    images += sample.split == "val"
# On Linux not ru_maxrss, which begins with the peak of the process that started this one.
status = Path("/proc/self/status")
peak = (int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024 if status.exists()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps({"rows": len(samples), "groups": len(homes), "val": images,
                  "parted": sum(len(splits) > 1 for splits in homes.values()),
                  "seconds": round(time.process_time(), 1), "gigabytes": peak / 1e9}))
"""


def test_a_million_rows(tmp_path):
    """Read, split and grouped in under 1.5 GB; the seconds of the processor are printed."""
    file = tmp_path / "labels.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", "group"])
        writer.writerows(
            [f"images/{i % 1000:03d}/{i}.jpg", f"class{i * 7919 % 23}", f"p{i * 104729 % 250_000}"]
            for i in range(1_000_000)
        )
    done = subprocess.run([sys.executable, "-c", PROGRAM, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    measured = json.loads(done.stdout)
    assert (measured["rows"], measured["groups"], measured["parted"]) == (1_000_000, 250_000, 0)
    assert abs(measured["val"] - 200_000) < 1_000
    assert measured["gigabytes"] < 1.5
