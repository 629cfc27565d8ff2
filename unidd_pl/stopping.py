"""When a run that is scored from time to time has gone on for long enough."""

from __future__ import annotations

from collections.abc import Mapping


def reason_to_stop(
    accuracies: Mapping[int, float], patience: int | None, min_delta: float, target: float | None
) -> str | None:
    """Return why a run has to end after its latest probe; None where it goes on.

    Args:
        accuracies: By number of rounds, in [0, 1].
        patience: So many probes in a row without a better one are enough; None for no end.
        min_delta: What counts as better.
        target: Accuracy that is enough; None for no end.
    """
    best, waited = float("-inf"), 0
    for _, accuracy in sorted(accuracies.items()):
        if target is not None and accuracy >= target:
            return f"the probe reached {100 * accuracy:.1f} %, its target is {100 * target:g} %"
        best, waited = (accuracy, 0) if accuracy > best + min_delta else (best, waited + 1)
    if patience is not None and waited >= patience:
        beyond = f" by more than {100 * min_delta:g} points" if min_delta else ""
        return f"the last {waited} probe(s) were not better than {100 * best:.1f} %{beyond}"
    return None
