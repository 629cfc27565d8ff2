"""What a distillation takes from the real data, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass

from unidd_pl.data.images import LabelledImages
from unidd_pl.features import layers_to_tap
from unidd_pl.spectral import Method, Signal
from unidd_pl.statistics import Statistics
from unidd_pl.teachers import Teacher


@dataclass(frozen=True)
class RealSide:
    """What a distillation takes from the real data.

    Args:
        teacher: The frozen teacher.
        statistics: Its real moments.
        images: Training images, for the start.
    """

    teacher: Teacher
    statistics: Statistics
    images: LabelledImages

    def check(self, method: Method, signal: Signal) -> None:
        """Refuse statistics that are not what a method compares with.

        Raises:
            ValueError: If they hold other layers or another signal.
        """
        expected = layers_to_tap(self.teacher.network, method.layers)
        if self.statistics.layers != expected:
            raise ValueError(
                f"method {method.name} matches the inputs of the layers {expected}, got statistics of "
                f"{self.statistics.layers}"
            )
        if self.statistics.signal != signal:
            raise ValueError(f"got statistics of the signal {self.statistics.signal!r}, expected {signal!r}")
