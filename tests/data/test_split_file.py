import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.discover import Sample, natural_key
from finetune.data.split_file import read_split, write_split
from finetune.errors import DataError

names = (
    st.binary(min_size=1)
    .map(lambda name: name.replace(b"/", b"").replace(b"\0", b""))
    .map(lambda name: name.decode("utf-8", "surrogateescape"))
    .filter(lambda name: name not in ("", ".", ".."))
)
splits = st.sampled_from([None, "train", "val", "test"])
groups = st.one_of(st.none(), names)


@settings(max_examples=200)
@given(st.dictionaries(names, st.tuples(names, splits, groups), min_size=1))
def test_csv_keeps_any_name(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("split") / "split.csv"
    samples = tuple(Sample(f"d/{name}", (row[0],), *row[1:]) for name, row in rows.items())
    write_split(file, samples)
    assert read_split(file) == samples


words = st.text("abc1 ,;\"'\n\r\t\\/", min_size=1).map(str.strip).filter(bool)


@given(st.dictionaries(names, st.lists(words, max_size=3, unique=True), min_size=1))
def test_csv_keeps_several_labels(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("split") / "split.csv"
    samples = tuple(
        Sample(f"d/{name}", tuple(sorted(labels, key=natural_key)), "val")
        for name, labels in rows.items()
    )
    write_split(file, samples)
    assert read_split(file, label_separator="|") == samples


def test_csv_is_plain(tmp_path):
    file = tmp_path / "split.csv"
    samples = [Sample('-a,"b"\n.jpg', ("cat",), "train"), Sample("c.jpg", ("dog",), None)]
    write_split(file, samples)
    assert file.read_bytes() == (
        b'path,label,split\r\n"-a,""b""\n.jpg",cat,train\r\nc.jpg,dog,\r\n'
    )


def test_csv_with_groups_and_several_labels(tmp_path):
    file = tmp_path / "split.csv"
    samples = (
        Sample("a.jpg", ("2", "10"), "train", "p"),
        Sample("b.jpg", (), "val"),
    )
    write_split(file, samples)
    assert file.read_text() == "path,label,split,group\na.jpg,2|10,train,p\nb.jpg,,val,\n"
    assert read_split(file, label_separator="|") == samples


def test_one_label_may_hold_the_separator(tmp_path):
    file = tmp_path / "split.csv"
    samples = (Sample("a.jpg", ("a|b",), "train"),)
    write_split(file, samples)
    assert read_split(file) == samples
    with pytest.raises(DataError, match=r"label `a\|b` holds `\|`"):
        write_split(file, [*samples, Sample("b.jpg", (), "val")])
    write_split(file, [*samples, Sample("b.jpg", (), "val")], label_separator=";")
    assert read_split(file, label_separator=";")[0] == samples[0]


def test_csv_of_a_spreadsheet(tmp_path):
    file = tmp_path / "split.csv"
    file.write_bytes(b"\xef\xbb\xbfsplit;note;label;path\r\nVal;x,y;cat;./a//b.jpg\r\n\r\n")
    assert read_split(file) == (Sample("a/b.jpg", ("cat",), "val"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column `path`; got none"),
        ("path,labels,split\n", "no column `label`.*Did you mean `labels`"),
        ("path,label,split\n", "has no rows"),
        ("path,label,split\na.jpg,x,trian\n", "line 2: got split `trian`.*Did you mean `train`"),
        ("path,label,split\na.jpg,x,\n./a.jpg,x,\n", r"line 3: `a.jpg` came before, at .* line 2"),
        ("path,label,split\n../a.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\nb/../../a.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\n/etc/a.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\n//etc/a.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\nC:\\a.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\na\0.jpg,x,\n", "leaves the data's root"),
        ("path,label,split\n.,x,\n", "leaves the data's root"),
        ("path,label,split\n,x,\n", "line 2: the path is empty"),
        ("path,label,split\na.jpg,,\n", "line 2: `a.jpg` has no label"),
        ("path,label,split\na,b.jpg,x,\n", "line 2: expected 3 cells, as in the header; got 4"),
        ("path,label,split\na.jpg,x\n", "line 2: expected 3 cells"),
        ('path,label,split\n"a.jpg,x,\n', "is not a CSV file"),
        ("path,label,split,path\n", "has the column `path` twice"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    file = tmp_path / "split.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_split(file)


def test_missing_csv(tmp_path):
    (tmp_path / "splits.csv").touch()
    with pytest.raises(DataError, match=r"split.csv cannot be read: no such file. Did you mean"):
        read_split(tmp_path / "split.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_split(tmp_path)
