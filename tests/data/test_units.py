from finetune.data.discover import Sample
from finetune.data.units import make_units


def members(samples, together=(), seed=0):
    return [
        [samples[i].path for i in unit.members] for unit in make_units(samples, together, seed=seed)
    ]


def test_groups_and_copies_join_through_each_other():
    samples = [
        Sample("a", ("x",), None, "p"),
        Sample("b", ("x",), None, "p"),
        Sample("c", ("y",), None, "q"),
        Sample("d", ("y",), None),
        Sample("e", ("y",), None),
        Sample("f", ("y",), None),
    ]
    units = members(samples, [["b", "c"], ["e", "d", "nowhere"], ["c", "d"]])
    assert sorted(units) == [["a", "b", "c", "d", "e"], ["f"]]
    [joined] = [unit for unit in make_units(samples, [["b", "c"]], seed=0) if len(unit.sizes) > 1]
    assert joined.sizes == (("x", 2), ("y", 1))


def test_a_group_named_like_a_path_is_not_that_path():
    samples = [Sample("a", ("x",), None, "b"), Sample("b", ("x",), None)]
    assert sorted(members(samples)) == [["a"], ["b"]]


def test_the_name_decides_the_place():
    """A unit of several stands where its smallest group, or else path, would stand alone."""
    alone = [Sample(name, ("x",), None) for name in "abcdef"]
    order = [paths[0] for paths in members(alone)]
    joined = members(alone, [["f", "a"]])
    assert [paths[0] for paths in joined] == [name for name in order if name != "f"]
    grouped = [*alone, Sample("z", ("x",), None, "c")]
    assert members(grouped, [["a", "z"]]).index(["a", "z"]) in (
        order.index("c"),
        order.index("c") - (order.index("a") < order.index("c")),
    )


def test_test_is_in_no_unit_and_still_joins():
    samples = [
        Sample("a", ("x",), "train"),
        Sample("b", ("x",), "train"),
        Sample("t", ("x",), "test"),
    ]
    assert members(samples, [["a", "t"], ["t", "b"]]) == [["a", "b"]]
    assert len(members(samples)) == 2
