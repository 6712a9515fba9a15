"""What a temperature from few images costs or brings: drawn models, and rules for few mistakes.

    python benchmarks/temperature.py [--draws 60]

Labels are drawn from a model's probabilities, and its logits then multiplied by a factor: 1 is
calibrated, 0.5 not sure enough, 1.5 too sure. A temperature is fitted to few images; the table
shows what that changes in the log loss of 4,000 others, on average and at worst (in nats; less than
0 is a gain). The rules: none; no temperature from fewer than 10 mistakes; a made-up mistake beside
fewer than 10 (what the tool does); a made-up mistake always. All but the first also want a gain of
more than a standard error on images that were not fitted to.
"""

import argparse

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from finetune.evaluation.temperature import FEWEST_MISTAKES, fit_temperature, fold_places

MODELS = ((2, 4.0), (2, 7.0), (10, 6.0))
FACTORS = (1.0, 0.5, 1.5)
IMAGES = (60, 150, 360)


def draw(images: int, classes: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw logits that hold, and labels from their probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return logits, targets


def choose(logits: Tensor, targets: Tensor, *, made_up: int, seed: int, wants_gain: bool) -> float:
    """Fit a temperature as `finetune.evaluation.temperature.calibrate` does, by another rule."""
    if wants_gain:
        places = fold_places(len(logits), None, seed=seed, folds=5)
        scaled = logits.clone()
        for fold in range(5):
            held_out = torch.from_numpy(places == fold)
            scaled[held_out] /= fit_temperature(
                logits[~held_out], targets[~held_out], "multiclass", made_up_mistakes=made_up
            )
        gain = functional.cross_entropy(logits, targets, reduction="none")
        gain -= functional.cross_entropy(scaled, targets, reduction="none")
        if gain.mean() <= gain.std() / len(gain) ** 0.5:
            return 1.0
    return fit_temperature(logits, targets, "multiclass", made_up_mistakes=made_up)


def by_rules(logits: Tensor, targets: Tensor, seed: int) -> dict[str, float]:
    """Give the temperature of each rule."""
    mistakes = int((logits.argmax(1) != targets).sum())
    plain = choose(logits, targets, made_up=0, seed=seed, wants_gain=True)
    smooth = choose(logits, targets, made_up=1, seed=seed, wants_gain=True)
    is_few = mistakes < FEWEST_MISTAKES
    return {
        "none": choose(logits, targets, made_up=0, seed=seed, wants_gain=False),
        "not from few": 1.0 if is_few else plain,
        "made up if few": smooth if is_few else plain,
        "made up": smooth,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=60)
    draws = parser.parse_args().draws
    torch.set_num_threads(1)
    rules = ("none", "not from few", "made up if few", "made up")
    print(f"| classes | right | factor | images | {' | '.join(rules)} |")
    print("| ---: " * 8 + "|")
    for classes, spread in MODELS:
        for factor in FACTORS:
            for images in IMAGES:
                changes: dict[str, list[float]] = {rule: [] for rule in rules}
                right = []
                for seed in range(draws):
                    logits, targets = draw(images, classes, spread, seed)
                    others, truths = draw(4000, classes, spread, 10_000 + seed)
                    right.append(float((others.argmax(1) == truths).double().mean()))
                    before = functional.cross_entropy(factor * others, truths)
                    for rule, temperature in by_rules(factor * logits, targets, seed).items():
                        after = functional.cross_entropy(factor * others / temperature, truths)
                        changes[rule].append(float(after - before))
                cells = [f"{np.mean(v):+.4f}, {max(v):+.4f}" for v in changes.values()]
                print(
                    f"| {classes} | {np.mean(right):.1%} | {factor} | {images} | "
                    f"{' | '.join(cells)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
