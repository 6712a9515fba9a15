"""The page of a comparison: several models beside each other, on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from finetune.evaluation.report.content import Value
from finetune.evaluation.report.document import read_asset, render_document
from finetune.evaluation.report.versus import Place, cost_chart, difference_strip, reach_of
from finetune.evaluation.report.wording import figure, interval

Standing = Literal["best", "equal", "worse", "unknown"]
"""Against the best: the best itself, not to be told apart from it, worse, or not comparable."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric: its key, its name in the field, what it says, and how it is read."""

    key: str
    name: str
    note: str
    is_share: bool = True
    is_higher_better: bool = True


@dataclass(frozen=True, slots=True)
class Contender:
    """One run.

    Attributes:
        name: short, and unlike the others'.
        run: its directory.
        backbone: of its network.
        image_size_px: side of what the network sees.
        dataset: name of the data.
        images: of the split that is compared.
        metrics: by key of a `Measure`.
        parameters: of the network.
        flops: operations of one image, a multiply-add counts as two.
        latency_ms: of one image on this machine; None where it was not measured.
        megabytes: of the bundle.
        seconds: of the training; None where the run does not say.
        cost: of the training, in the currency of the price; None without one.
        standing: against the best.
    """

    name: str
    run: str
    backbone: str
    image_size_px: int
    dataset: str
    images: int
    metrics: Mapping[str, Value]
    parameters: int
    flops: int
    latency_ms: float | None
    megabytes: float
    seconds: float | None
    cost: float | None
    standing: Standing


@dataclass(frozen=True, slots=True)
class Pair:
    """The best and another one, on the images that both were asked about.

    Attributes:
        best: name of the best.
        other: name of the other.
        images: that both were asked about, with the same label.
        units: that are independent of each other: groups, such as patients, or images.
        only_best: of these images, those that the best alone has right.
        only_other: those that the other alone has right.
        advantage: of the best in the headline metric, positive where it is better; None where
            the images differ too much, or the metric is undefined.
        p: two-sided, of no difference; None as above.
        p_corrected: the same for the number of comparisons.
        standing: of the other.
        text: all of that in a sentence.
    """

    best: str
    other: str
    images: int
    units: int = 0
    only_best: int = 0
    only_other: int = 0
    advantage: Value | None = None
    p: float | None = None
    p_corrected: float | None = None
    standing: Standing = "unknown"
    text: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is shown.

    Attributes:
        title: of the page.
        summary: which is the best and what that is worth, in sentences.
        split: whose images are compared.
        headline: key of the measure that ranks.
        measures: in the order of the columns.
        contenders: the best first.
        pairs: the best with each other one, in the same order.
        failures: name and reason of each backbone that could not be trained.
        warnings: what makes the comparison weaker than it looks, in sentences.
        method: how intervals, differences and costs were found, in sentences.
        price_per_hour: of the machine; None for none.
    """

    title: str
    summary: tuple[str, ...]
    split: str
    headline: str
    measures: tuple[Measure, ...]
    contenders: tuple[Contender, ...]
    pairs: tuple[Pair, ...]
    failures: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    price_per_hour: float | None = None


def render_comparison(content: Comparison) -> str:
    """Make the page, as HTML: one file that needs nothing else."""
    is_timed = any(contender.latency_ms is not None for contender in content.contenders)
    leads = [pair.advantage for pair in content.pairs if pair.advantage is not None]
    return render_document(
        "comparison.html",
        style=read_asset("page.css") + read_asset("comparison.css"),
        script=read_asset("page.js"),
        content=content,
        charts=_charts(content, is_timed=is_timed),
        is_timed=is_timed,
        is_corrected=sum(pair.p is not None for pair in content.pairs) > 1,
        reach=reach_of(leads) if leads else None,
        chance=write_p,
        difference=difference_strip,
        duration=write_duration,
        signed=_signed,
    )


def write_p(p: float) -> str:
    """Write a p value: two digits that count, and no more than three places; ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def write_duration(seconds: float | None) -> str:
    """Write a time: ``48 s``, ``12 min``, ``3.5 h``; unknown is ``–``."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _signed(value: Value, is_share: bool) -> str:
    """Write a difference with its interval, that of shares in points."""
    number = value.value or 0.0
    size = figure(abs(number), is_share).removesuffix(" %")
    sign = "+" if number > 0 else "−" if number < 0 else ""
    ends = interval(value, is_share)
    return f"{sign}{size} ({ends})" if ends else f"{sign}{size}"


def _charts(content: Comparison, *, is_timed: bool) -> list[Markup]:
    headline = content.measures[0]

    def draw(identity: str, title: str, cost: str, costs: Sequence[float | None]) -> Markup:
        places = [
            Place(contender.name, cost, contender.metrics[headline.key], contender.standing)
            for contender, cost in zip(content.contenders, costs, strict=True)
            if cost
        ]
        known = [place.cost for place in places]
        if len(known) > 1 and max(known) < 1.01 * min(known):
            return Markup()  # nothing to be seen: all cost the same
        return cost_chart(
            places,
            identity=identity,
            title=title,
            cost=cost,
            worth=headline.name,
            is_share=headline.is_share,
        )

    contenders = content.contenders
    name = f"{headline.name[:1].upper()}{headline.name[1:]}"
    parameters = draw(
        "size", f"{name} by size", "parameters, M", [each.parameters / 1e6 for each in contenders]
    )
    speed = (
        draw("speed", f"{name} by speed", "ms an image", [each.latency_ms for each in contenders])
        if is_timed
        else draw("work", f"{name} by work", "GFLOPs", [each.flops / 1e9 for each in contenders])
    )
    return [chart for chart in (speed, parameters) if chart]
