from hypothesis import given
from hypothesis import strategies as st

from finetune.prediction.columns import best_classes, top_columns


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=8), st.integers(0, 9))
def test_the_best_classes_come_first_and_the_first_of_equals(
    numbers: list[float], count: int
) -> None:
    best = best_classes(numbers, count)
    assert len(best) == len(set(best)) == min(count, len(numbers))
    keys = [(-numbers[index], index) for index in best]
    assert keys == sorted(keys)
    rest = [(-number, index) for index, number in enumerate(numbers) if index not in best]
    assert not best or not rest or max(keys) < min(rest)


def test_columns_of_the_best_classes_are_numbered() -> None:
    assert top_columns(0) == []
    assert top_columns(2) == ["label_1", "probability_1", "label_2", "probability_2"]
