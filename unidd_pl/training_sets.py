"""What the rows of an evaluation are trained on: distilled sets, and real images beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unidd_pl.baselines import (
    BASELINES,
    NEED_FEATURES,
    ROW_NAMES,
    Baseline,
    check_in_memory,
    real_images,
    selected_images,
    whole_set,
)
from unidd_pl.console import say
from unidd_pl.data.module import ImageData
from unidd_pl.distilled import DistilledSet
from unidd_pl.evaluation import TrainingSet
from unidd_pl.label_store import LabelStore
from unidd_pl.protocols import Protocol
from unidd_pl.rows import Row
from unidd_pl.stored_labels import real_images_alike
from unidd_pl.synthetic import check_enough_images
from unidd_pl.teachers import Teacher


class TrainingSets:
    """The training set of each row and seed.

    Args:
        groups: Distilled sets by the name of their row.
        baselines: Real images to hold them against; those drawn at random are always there.
        data: The real data.
        protocol: How the students are trained.
        whole_epochs: Epochs on the whole data set; None for the protocol's.
        stores: Stored labels of the sets, for a protocol that takes them.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[DistilledSet]],
        baselines: Sequence[Baseline],
        data: ImageData,
        protocol: Protocol,
        whole_epochs: int | None,
        stores: Sequence[LabelStore] = (),
    ) -> None:
        self.groups = groups
        self.baselines = [kind for kind in BASELINES if kind in ("random", *baselines)]
        self.data = data
        self.protocol = protocol
        self.whole_epochs = protocol.lasting(whole_epochs).epochs
        self.sets = {one.fingerprint(): one for members in groups.values() for one in members}
        self.ipc = next(iter(self.sets.values())).ipc
        self.stores = {store.facts.distilled: store for store in stores}
        self._read: dict[str, TrainingSet] = {}

    @property
    def need_features(self) -> bool:
        """Whether a teacher is needed to select real images, whatever the labels."""
        return bool(NEED_FEATURES & set(self.baselines))

    def check(self) -> None:
        """Refuse, before any work, rows that the real images cannot fill.

        Raises:
            ValueError: If a class has too few images, or the whole data set is asked for and not in memory.
        """
        check_enough_images(self.data.train, self.data.spec, self.ipc)
        if "whole" in self.baselines:
            check_in_memory(self.data)

    def rows(self, networks: Sequence[str]) -> list[Row]:
        """Return the empty rows: for each network the distilled sets, then the real images."""
        rows = []
        for network in networks:
            for name, members in self.groups.items():
                rows.append(Row(name, network, distilled=tuple(one.fingerprint() for one in members)))
            for kind in self.baselines:
                name, epochs = ROW_NAMES[kind], None
                if kind == "whole" and self.whole_epochs != self.protocol.epochs:
                    name, epochs = f"{name}, {self.whole_epochs} epochs", self.whole_epochs
                rows.append(Row(name, network, epochs=epochs, baseline=kind))
        return rows

    def select(self, teacher: Teacher, cache: Path) -> None:
        """Read the real images that do not depend on a seed, once for all students.

        Args:
            teacher: Gives the features of k-centre and herding.
            cache: Folder of the selections.
        """
        for kind in self.baselines:
            if kind in NEED_FEATURES:
                say(f"Selecting {self.ipc} real images of each class: {kind} on the features of {teacher.name}")
                self._read[kind] = selected_images(kind, teacher, self.data, self.ipc, cache)
            elif kind == "whole":
                self._read[kind] = whole_set(self.data)

    def of(self, row: Row, distilled: str | None, seed: int) -> TrainingSet:
        """Return what a student of a row is trained on.

        Args:
            row: The row.
            distilled: Fingerprint of the distilled set; None for real images.
            seed: Seed of the student.
        """
        if distilled is not None:
            one, store = self.sets[distilled], self.stores.get(distilled)
            return TrainingSet(one.images, one.labels, self.ipc, store.views if store else None, store)
        real = self._read.get(str(row.baseline))
        if real is None:
            real = real_images(self.data.train, self.data.spec, self.ipc, seed)
        return real_images_alike(real, next(iter(self.stores.values()), None), seed)
