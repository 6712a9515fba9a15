"""What a comparison means, in sentences."""

from collections.abc import Sequence

from finetune.commands.entrants import Entrant
from finetune.commands.ranking import Headline
from finetune.evaluation.report.comparison import Contender, Measure, Pair, write_p
from finetune.evaluation.report.content import Value
from finetune.evaluation.significance import SIGNIFICANT


def amount(value: float, measure: Measure, *, is_difference: bool = False) -> str:
    """Write a metric's value as it is read; the difference of shares in points, without unit."""
    if not measure.is_share:
        return f"{value:.3f}"
    return f"{100 * value:.1f}" if is_difference else f"{100 * value:.1f} %"


def spread(value: Value, measure: Measure) -> str:
    """Write a value with its interval: ``95.4 % (91.0 to 98.2)``; undefined is said."""
    if value.value is None:
        return "undefined"
    shown = amount(value.value, measure)
    return f"{shown}{_ends(value, measure)}"


def _ends(value: Value, measure: Measure) -> str:
    if value.low is None or value.high is None:
        return ""
    low, high = (amount(end, measure, is_difference=True) for end in (value.low, value.high))
    return f" ({low} to {high})"


def _turned(value: Value) -> Value:
    low, high = (None if end is None else -end for end in (value.high, value.low))
    return Value(None if value.value is None else -value.value, low, high)


def in_words(pair: Pair, measure: Measure, split: str, *, comparisons: int) -> str:
    """Say which of two is better, by how much, and whether that may be chance.

    Args:
        pair: corrected.
        measure: the headline metric.
        split: of the images.
        comparisons: that the p values were corrected for.
    """
    lead, p = pair.advantage, pair.p
    if lead is None or lead.value is None or p is None or pair.p_corrected is None:
        return _untested(pair, split, measure)
    ahead, behind = pair.best, pair.other
    if lead.value < 0:  # on the images that both share
        ahead, behind, lead = behind, ahead, _turned(lead)
    unit = f"points of {measure.name}" if measure.is_share else f"of {measure.name}"
    size = f"{amount(lead.value or 0.0, measure, is_difference=True)} {unit}{_ends(lead, measure)}"
    where = f"on the same {pair.images} images"
    if pair.units != pair.images:
        where += f" of {pair.units} groups"
    chance = write_p(pair.p_corrected)
    chance = f"p {chance}" if chance.startswith("<") else f"p = {chance}"
    if comparisons > 1:
        chance += f", corrected for {comparisons} comparisons"
    if pair.p_corrected <= SIGNIFICANT:
        return f"{ahead} is better than {behind} by {size} {where}, {chance}."
    if lead.value == 0:
        return f"{ahead} and {behind} cannot be told apart: neither leads {where}, {chance}."
    return f"{ahead} and {behind} cannot be told apart: {ahead} leads by {size} {where}, {chance}."


def _untested(pair: Pair, split: str, measure: Measure) -> str:
    if pair.advantage is None and pair.units:
        return (
            f"{pair.best} and {pair.other} are not tested: {measure.name} is undefined on the "
            f"{pair.images} images of {split} that both were asked about."
        )
    common = f"only {pair.images} images of {split} are" if pair.images else "no image is"
    return (
        f"{pair.best} and {pair.other} are not tested: {common} the same for both, so that their "
        "figures may differ for that alone."
    )


def summarise(contenders: Sequence[Contender], headline: Headline, split: str) -> tuple[str, ...]:
    """Say which is the best, which may be as good, and which of these is the cheapest to use."""
    best, *others = contenders
    value = spread(best.metrics[headline.key], headline.measure)
    lines = [
        f"{best.name} is the best of {len(contenders)} by {headline.measure.name}: {value} on "
        f"{best.images} images of {split}."
        if others
        else f"{best.name}: {headline.measure.name} {value} on {best.images} images of {split}."
    ]
    equal = [contender for contender in others if contender.standing == "equal"]
    worse = [contender for contender in others if contender.standing == "worse"]
    if equal:
        lines.append(f"Not distinguishable from the best: {_listed([c.name for c in equal])}.")
        light = min([best, *equal], key=lambda contender: contender.flops)
        if light is not best and light.flops < 0.9 * best.flops:
            share = light.flops / best.flops
            lines.append(
                f"Of these, {light.name} needs the least: {100 * share:.0f} % of the operations "
                f"of {best.name}."
            )
    elif worse and len(worse) == len(others):
        lines.append(
            "It is better than each of the others by more than chance explains."
            if len(others) > 1
            else f"It is better than {others[0].name} by more than chance explains."
        )
    return tuple(lines)


def warn(
    entrants: Sequence[Entrant], pairs: Sequence[Pair], headline: Headline, split: str
) -> tuple[str, ...]:
    """Say what makes the comparison weaker than it looks."""
    lines = [headline.warning] if headline.warning else []
    sizes = {entrant.name: len(entrant.samples) for entrant in entrants}
    roots = sorted({str(entrant.root) for entrant in entrants})
    if len(roots) > 1:
        lines.append(
            f"The runs are about different images, in {_listed(roots)}: no test compares them, and "
            "a difference may be that of the images."
        )
    elif any(pair.images < max(sizes[pair.best], sizes[pair.other]) for pair in pairs):
        counts = _listed(
            [
                f"{pair.images} of {sizes[pair.other]} ({pair.other})"
                for pair in pairs
                if pair.images < max(sizes[pair.best], sizes[pair.other])
            ]
        )
        lines.append(
            f"The runs have divided the images differently. In common with {pairs[0].best}: "
            f"{counts}. Train with one seed, or with one dataset.split_file, to compare on all."
        )
    if split == "val":
        lines.append(
            "The images are those of validation, which also chose each run's best epoch: figures "
            "on images that chose nothing are a little lower. dataset.test_fraction=0.2 keeps such "
            "images for the next training."
        )
    elif split == "train":
        lines.append("The images are those that the runs were trained on: this is no measurement.")
    devices = sorted({entrant.device for entrant in entrants if entrant.device is not None})
    if len(devices) > 1:
        lines.append(
            f"The trainings ran on different devices ({_listed(devices)}), so that their "
            "times and costs are of these too."
        )
    return tuple(lines)


def explain(
    headline: Headline, pairs: Sequence[Pair], *, resamples: int, threads: int, is_timed: bool
) -> tuple[str, ...]:
    """Say how the figures were found."""
    tested = [pair for pair in pairs if pair.p is not None]
    grouped = any(pair.units != pair.images for pair in tested)
    lines = [
        f"Intervals hold 95 % of {resamples:,} bootstrap resamples of the images"
        f"{', whole groups at a time' if grouped else ''}. A difference is resampled with the same "
        "images for both models, which is why two intervals may overlap though one model is better."
    ]
    if tested:
        lines.append(_explain_p(headline, resamples, len(tested), is_grouped=grouped))
        lines.append(
            "That two models cannot be told apart does not show that they are equal: more images "
            "may tell."
        )
    lines.append(
        "FLOPs count a multiply-add as two operations; half of them are what is called MACs. "
        "Convolutions and matrix products are counted."
    )
    if is_timed:
        lines.append(
            "Latency is the median of at least ten answers to one image on this machine, without "
            f"reading and resizing it, {threads} threads, the models by turns."
        )
    return tuple(lines)


def _explain_p(headline: Headline, resamples: int, tests: int, *, is_grouped: bool) -> str:
    if headline.key in ("accuracy", "exact_match") and not is_grouped:
        test = "McNemar's exact test on the images that only one of the two has right."
    else:
        test = (
            f"a permutation test of {headline.measure.name}: the two models' answers are swapped "
            f"at random in {'groups' if is_grouped else 'images'}, {resamples:,} times. On few "
            "images it is stricter than the interval."
        )
    limit = (
        f"It is corrected for {tests} comparisons (Holm); below 0.05 after that, "
        if tests > 1
        else "Below 0.05, "
    )
    return (
        f"p is the chance of a difference as large between equally good models, by {test} {limit}"
        "a model counts as worse than the best."
    )


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
