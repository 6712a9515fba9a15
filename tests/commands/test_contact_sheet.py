"""Which images a contact sheet shows."""

from finetune.commands.contact_sheet import COLUMNS, choose
from finetune.data.discover import Sample


def samples(**counts: int) -> list[Sample]:
    return [
        Sample(f"{name}/{index}", (name,), "train")
        for name, count in counts.items()
        for index in range(count)
    ]


def test_every_class_is_shown_before_one_is_shown_twice() -> None:
    many = samples(a=100, b=1, c=2)
    shown = [many[index].labels[0] for index in choose(many, seed=0)]
    assert shown == ["a", "a", "a", "a", "a", "b", "c", "c"]


def test_no_image_is_shown_twice_and_few_are_all_shown() -> None:
    few = samples(a=2, b=1)
    assert sorted(choose(few, seed=0)) == [0, 1, 2]
    assert choose(samples(**{f"c{index}": 3 for index in range(20)}), seed=1) != choose(
        samples(**{f"c{index}": 3 for index in range(20)}), seed=2
    )
    assert len(choose(samples(a=50, b=50), seed=0)) == COLUMNS
