"""What students reached, and the statistics over students and distilled sets."""

from __future__ import annotations

import math
import statistics as plain_statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CONFIDENCE = 0.95  # of the intervals

Figure = tuple[float, float | None]
"""Mean and sample standard deviation (n − 1) over students; no deviation for one student."""


@dataclass(frozen=True)
class StudentScore:
    """What one student reached.

    Args:
        seed: Seed of the student.
        accuracies: Top-1 on the test images in [0, 1], by epoch (counted from 1).
        tail_epochs: Epochs that the tail mean is over.
        top5: Top-5 likewise; empty where there are no more than five classes.
        holdout: Top-1 on images held out of the training set, by the same epochs; empty without a hold-out.
        distilled: Fingerprint of the distilled set it was trained on; None for real images.
    """

    seed: int
    accuracies: dict[int, float]
    tail_epochs: tuple[int, ...]
    top5: dict[int, float] = field(default_factory=dict)
    holdout: dict[int, float] = field(default_factory=dict)
    distilled: str | None = None

    @property
    def last_epoch(self) -> float:
        """Accuracy after the last epoch."""
        return self.accuracies[max(self.accuracies)]

    @property
    def tail_mean(self) -> float:
        """Mean accuracy over the scored epochs of the tail; the figure to compare by."""
        return sum(self.accuracies[epoch] for epoch in self.tail_epochs) / len(self.tail_epochs)

    @property
    def top5_tail_mean(self) -> float | None:
        """Mean top-5 accuracy over the tail; None where there are no more than five classes."""
        return sum(self.top5[epoch] for epoch in self.tail_epochs) / len(self.tail_epochs) if self.top5 else None

    @property
    def selected_epoch(self) -> int | None:
        """The epoch that was best on the hold-out, the latest of equal ones; None without a hold-out."""
        return max(self.holdout, key=lambda epoch: (self.holdout[epoch], epoch)) if self.holdout else None

    @property
    def selected(self) -> float | None:
        """Accuracy on the test images after the epoch chosen on the hold-out; None without a hold-out."""
        return None if self.selected_epoch is None else self.accuracies[self.selected_epoch]

    @property
    def best_epoch(self) -> float:
        """Highest accuracy seen: chosen on the test images, so only a labelled extra."""
        return max(self.accuracies.values())


@dataclass(frozen=True)
class Difference:
    """The mean difference of paired students, with a t interval and the p-value of its t-test.

    Args:
        n: Number of pairs: seeds that both sides have.
        mean: Mean difference, in [−1, 1].
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided; not a number for one pair.
    """

    n: int
    mean: float
    low: float
    high: float
    p_value: float


def mean_and_std(values: Sequence[float]) -> Figure:
    """Return mean and sample standard deviation (n − 1); None for the latter where there is one value."""
    return plain_statistics.fmean(values), plain_statistics.stdev(values) if len(values) > 1 else None


def by_set(scores: Sequence[StudentScore]) -> dict[str | None, list[float]]:
    """Return the tail means of the students by the distilled set that they were trained on."""
    groups: dict[str | None, list[float]] = defaultdict(list)
    for score in scores:
        groups[score.distilled].append(score.tail_mean)
    return dict(groups)


def by_seed(scores: Sequence[StudentScore]) -> dict[int, float]:
    """Return the tail mean of each student seed, the mean over the sets where there are several."""
    groups: dict[int, list[float]] = defaultdict(list)
    for score in scores:
        groups[score.seed].append(score.tail_mean)
    return {seed: plain_statistics.fmean(values) for seed, values in groups.items()}


def deviation_between_sets(scores: Sequence[StudentScore]) -> float | None:
    """Return the standard deviation of the means of the sets; None for one set."""
    return mean_and_std([plain_statistics.fmean(values) for values in by_set(scores).values()])[1]


def deviation_within_sets(scores: Sequence[StudentScore]) -> float | None:
    """Return the standard deviation of the students of a set, pooled over the sets; None for one student a set."""
    groups = [values for values in by_set(scores).values() if len(values) > 1]
    if not groups:
        return None
    freedom = sum(len(values) - 1 for values in groups)
    return math.sqrt(sum(plain_statistics.variance(values) * (len(values) - 1) for values in groups) / freedom)


def paired_difference(scores: Sequence[StudentScore], others: Sequence[StudentScore]) -> Difference:
    """Compare the tail means of students that share a seed; for one pair the interval is not a number.

    One set on each side: a paired t-test over the seeds. Several sets: the sets are drawn at random too, so the
    squared standard error is the variance of the seeds' differences over the number of seeds plus, for each side of
    several sets, the variance of its sets' means over their number, with the degrees of freedom of Welch and
    Satterthwaite. The noise of single students enters both parts, so this errs to the wide side.
    """
    ours, theirs = by_seed(scores), by_seed(others)
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    count = len(differences)
    mean = plain_statistics.fmean(differences) if differences else math.nan
    if count < 2:
        return Difference(count, mean, math.nan, math.nan, math.nan)
    parts = [(plain_statistics.variance(differences) / count, count - 1)]
    for side in (scores, others):
        if (spread := deviation_between_sets(side)) is not None:
            sets = len(by_set(side))
            parts.append((spread**2 / sets, sets - 1))
    return _t_interval(count, mean, parts)


def _t_interval(count: int, mean: float, parts: Sequence[tuple[float, int]]) -> Difference:
    """Return the interval of a mean from (variance, degrees of freedom) of its independent parts."""
    total = sum(variance for variance, _ in parts)
    if total == 0:  # no spread to test against
        return Difference(count, mean, mean, mean, 1.0 if mean == 0 else 0.0)
    from scipy import stats  # noqa: PLC0415  half a second that only the end of an evaluation needs

    freedom = total**2 / sum(variance**2 / part for variance, part in parts)
    error = math.sqrt(total)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Difference(count, mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom)))


def across_networks(scores: Mapping[str, Sequence[StudentScore]]) -> tuple[Figure, Figure] | None:
    """Return the mean over all networks, and the drop from the first one to the mean of the others.

    Both are made for each seed that all networks have, then averaged, so that the deviation is that of the seeds.

    Args:
        scores: By network, the first being that from which the drop is taken.

    Returns:
        None for fewer than two networks or no seed in common.
    """
    seeds = [by_seed(one) for one in scores.values()]
    shared = sorted(set.intersection(*(set(one) for one in seeds))) if len(seeds) > 1 else []
    if not shared:
        return None
    means = [plain_statistics.fmean(one[seed] for one in seeds) for seed in shared]
    drops = [seeds[0][seed] - plain_statistics.fmean(one[seed] for one in seeds[1:]) for seed in shared]
    return mean_and_std(means), mean_and_std(drops)
