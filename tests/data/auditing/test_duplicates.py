import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetune.data.auditing import duplicates
from finetune.data.auditing.duplicates import find_near_duplicates


def slow_sets(points, max_distance):
    """Connect pair by pair."""
    points = points.astype(np.float64)
    sets = [{index} for index in range(len(points))]
    for i, some in enumerate(points):
        for j, other in enumerate(points[:i]):
            if np.linalg.norm(some - other) <= max_distance and sets[i] is not sets[j]:
                sets[i] |= sets[j]
                for index in sets[i]:
                    sets[index] = sets[i]
    return sorted({tuple(sorted(part)) for part in sets if len(part) > 1})


@given(
    arrays(
        np.float16, st.tuples(st.integers(0, 40), st.just(20)), elements=st.sampled_from([0, 1])
    ),
    st.sampled_from([0.5, 1.1, 1.5, 1.8]),
)
def test_agrees_with_pair_by_pair(points, max_distance):
    found = find_near_duplicates(points, max_distance=max_distance)
    assert list(found) == slow_sets(points, max_distance)


def test_blocks_are_joined(monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 16)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(150, 8)).astype(np.float16)
    found = find_near_duplicates(points, max_distance=1.2)
    assert list(found) == slow_sets(points, 1.2)
    assert len(found) > 1


def test_order_does_not_matter():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 30)).astype(np.float16)
    points[100:] = points[:100] + rng.normal(0, 0.001, (100, 30)).astype(np.float16)
    order = rng.permutation(200)
    found = find_near_duplicates(points[order])
    assert {tuple(sorted(order[list(part)])) for part in found} == {
        (i, i + 100) for i in range(100)
    }


def test_ten_thousand_copies_and_a_long_chain():
    """Neither the pairs of many copies nor the links of a film are too many."""
    rng = np.random.default_rng(0)
    copies = np.repeat(rng.normal(size=(1, 288)), 10_000, axis=0).astype(np.float16)
    step = np.zeros(288)
    step[:9] = 0.02
    film = 2 + np.arange(100)[:, None] * step
    sets = find_near_duplicates(np.concatenate([copies, film.astype(np.float16)]))
    assert sets[0] == tuple(range(10_000))
    assert sets[1] == tuple(range(10_000, 10_100))


def test_nothing_to_compare():
    assert find_near_duplicates(np.zeros((0, 288), np.float16)) == ()
    assert find_near_duplicates(np.zeros((1, 288), np.float16)) == ()
