"""What is typed after ``compare``, before anything is composed."""

import pytest

from finetune.compare_words import sort_words
from finetune.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "runs", "own"),
    [
        (["a", "runs/b"], ("a", "runs/b"), ()),
        (["runs=[a,b]"], ("a", "b"), ()),
        (["runs=a,b", "c"], ("c", "a", "b"), ()),
        (["runs=['a, b',\"c d\"]"], ("a, b", "c d"), ()),
        (["~/a", "runs/*", "split=test"], ("~/a", "runs/*"), ("split=test",)),
        (["runs/x/lr=0.1", "debug=true"], ("runs/x/lr=0.1",), ("debug=true",)),
        (["runs=[]"], (), ()),
        (["runs=null"], None, ()),
        ([], None, ()),
        (["-m", "split=val,test", "a"], ("a",), ("split=val,test", "-m")),
        (["split=val", "splitt=val"], None, ("split=val", "splitt=val")),  # refused elsewhere
    ],
)
def test_words_without_a_name_are_runs(words, runs, own):
    sorted_words = sort_words(words)
    assert sorted_words.runs == runs
    assert sorted_words.own == own
    assert sorted_words.backbones is None


def test_what_compare_does_not_know_is_for_the_trainings():
    words = [
        *("backbones=[resnet18,resnet50]", "dataset.root=~/flowers", "split=test", "~logger"),
        *("resamples=500", "output=x", "latency=false", "price_per_hour=2", "runs=/tmp/runs"),
    ]
    found = sort_words([*words, "name=flat", "+dataset.name=x"])
    assert found.backbones == ("resnet18", "resnet50")
    assert found.runs is None
    assert set(found.own) == {
        *("split=test", "resamples=500", "output=x", "latency=false", "price_per_hour=2")
    }
    assert found.for_backbone("resnet50") == [
        *("dataset.root=~/flowers", "~logger", "+dataset.name=x", "runs=/tmp/runs"),
        "name=flat_resnet50",
    ]


def test_runs_of_one_comparison_have_one_time_in_their_names():
    found = sort_words(["backbones=resnet18,resnet50"])
    names = [found.for_backbone(name)[-1] for name in found.backbones or ()]
    times = {name.removeprefix("name=").rpartition("_")[0] for name in names}
    assert len(times) == 1
    assert [name.rpartition("_")[2] for name in names] == ["resnet18", "resnet50"]


def test_own_options_are_for_both():
    found = sort_words(["backbones=[a]", "config_dir=mine"])
    assert "config_dir=mine" in found.own
    assert "config_dir=mine" in found.training


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "backbones=[x]"], "^a: a run, but backbones= trains runs of its own"),
        (["backbones=[x,y,x]"], "^backbones: got `x` twice"),
        (["backbones=[x]", "resume=runs/a"], "^resume: would go on with one training"),
        (["backbones=[x]", "model.backbone=y"], "^model.backbone: is what backbones= names"),
        (["backbones=[x]", "-m"], "^-m: "),
        (["backbones=[x]", "resampels=9"], r"^resampels: no such key\. Did you mean `resamples`\?"),
        (["backbones=[x]", "optimizer.lrr=9"], r"Did you mean `optimizer\.lr`\?"),
        (["a", "b", "optimizer.lr=9"], "^optimizer.lr: is for trainings"),
    ],
)
def test_words_that_do_not_go_together(words, message):
    with pytest.raises(ConfigError, match=message):
        sort_words(words)
