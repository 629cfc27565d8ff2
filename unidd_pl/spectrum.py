"""`unidd spectrum`: real features by frequency, what the methods keep of them, and what distilled sets match."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unidd_pl.band_pictures import PICTURED_BANDS, band_images, draw_band_pictures, first_of_each_class, hidden
from unidd_pl.comparison import environment
from unidd_pl.console import say
from unidd_pl.coverage import FIGURE_FILE, RESULTS_FILE, matches_of, spectra_of
from unidd_pl.curriculum import CurriculumCallback
from unidd_pl.data.module import ImageData
from unidd_pl.distillation import DistillationModule
from unidd_pl.distilled import DistilledSet, to_pixels
from unidd_pl.files import atomic_write, check_writable
from unidd_pl.pictures import folder_names
from unidd_pl.pretraining import TeacherRecipe
from unidd_pl.responses import methods_beside, responses
from unidd_pl.specs import check_same_classes
from unidd_pl.spectral import HFM, Curriculum
from unidd_pl.spectrum_figure import draw_spectrum, shown_layers
from unidd_pl.spectrum_results import Spectrum
from unidd_pl.stages import device_of, statistics_stage, teacher_stage
from unidd_pl.statistics import Statistics
from unidd_pl.statistics_cache import StatisticsRecipe
from unidd_pl.teachers import Teacher
from unidd_pl.tracking import StageRun, Tracking

RESULTS_FORMAT = "unidd-spectrum-1"

_COMMON_STEM = "distilled"  # what `unidd fit` calls every file: the folder tells them apart


class SpectrumReport:
    """One `unidd spectrum`.

    The inputs of convolutions are analysed whatever layers the method of the config matches, so that all methods
    stand side by side; one that matches variances alone is shown by its response.

    Args:
        module: The distillation of the config; its method, signal, β and images per class are used.
        data: The real data.
        teacher: Which teacher.
        statistics: How to get its real moments.
        tracking: Where the stages are recorded.
        trainer: Arguments of Lightning's Trainer; of them its accelerator, its CurriculumCallback and ``logger: false``
            are used.
        output: Folder of the results.
        cache: Folder of teachers and statistics.
        distilled: Files of distilled sets to show beside the real data.
        layers: Names of the layers in the figure; empty for all, or the first, the middle and the last of many.
        pictures: Draw what the low and the high band of each distilled set hold.
        overwrite: Replace what ``output`` holds.
        config: Resolved config as YAML, for the record.

    Raises:
        ValueError: If a set does not fit the data, there is none to draw pictures of, or ``output`` holds results.
    """

    def __init__(
        self,
        module: DistillationModule,
        data: ImageData,
        teacher: TeacherRecipe,
        statistics: StatisticsRecipe,
        tracking: Tracking,
        trainer: Mapping[str, Any],
        output: Path,
        cache: Path,
        *,
        distilled: Sequence[Path] = (),
        layers: Sequence[str] = (),
        pictures: bool = False,
        overwrite: bool = False,
        config: str = "",
    ) -> None:
        self.module = module
        self.data = data
        self.teacher_recipe = teacher
        self.statistics_recipe = statistics
        self.tracking = Tracking(enabled=False) if trainer.get("logger") is False else tracking
        self.trainer_arguments = dict(trainer)
        self.output = output
        self.cache = cache
        self.layers = tuple(layers)
        self.pictures = pictures
        self.config = config
        loaded = [DistilledSet.load(path) for path in distilled]
        self.sets = dict(zip(_names(distilled), loaded, strict=True))
        if pictures and not loaded:
            raise ValueError("got pictures without a distilled set: give --distilled FILE, or leave --pictures out")
        for one in loaded:
            check_same_classes(one.spec, data.spec)
        self._check_output(overwrite)

    def run(self) -> Spectrum:
        """Analyse; print the tables and where the figure, the pictures and the numbers are."""
        teacher = teacher_stage(
            self.teacher_recipe, self.data, self.cache, self.tracking, accelerator=self._accelerator, config=self.config
        )
        statistics = statistics_stage(
            self.statistics_recipe, teacher, self.data, HFM(), self.module.signal, self.cache, self.tracking,
            accelerator=self._accelerator, config=self.config,
        )  # fmt: skip
        shown = self._shown(statistics)
        for name, one in self.sets.items():
            if (expected := one.manifest.get("teacher")) not in (None, teacher.fingerprint):
                say(f"Note: {name} was distilled with another teacher ({str(expected)[:12]}) than it is seen with here")
        tags = {"dataset": self.data.spec.name, "teacher": teacher.fingerprint, "statistics": statistics.fingerprint}
        with self.tracking.run("spectrum", self.output.name, tags, self.config) as run:
            spectrum = self._analyse(teacher, statistics)
            self._write(spectrum, teacher, statistics, shown, run)
            if self.pictures:
                for name, path in self._picture_files().items():
                    self._draw_bands(self.sets[name], teacher, spectrum, path)
                    run.artifact(path)
        return spectrum

    def _analyse(self, teacher: Teacher, statistics: Statistics) -> Spectrum:
        module = self.module
        spectra = spectra_of(statistics)
        filters = responses(
            methods_beside(module.method), module.beta, module.ipc, statistics.spectra, self._curriculum
        )
        matches = matches_of(
            self.sets, teacher, statistics, spectra, self.statistics_recipe.batch_size, device_of(self._accelerator)
        )
        return Spectrum(spectra, filters, matches)

    def _write(
        self, spectrum: Spectrum, teacher: Teacher, statistics: Statistics, shown: Sequence[int], run: StageRun
    ) -> None:
        figure, results = self.output / FIGURE_FILE, self.output / RESULTS_FILE
        with atomic_write(results) as temporary:
            content = {**self._about(teacher, statistics), **spectrum.to_dict()}
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        title = (
            f"{teacher.name} on {self.data.spec.name}, signal {statistics.signal}; "
            f"the config's method: {self.module.method.name}, β = {self.module.beta:g}"
        )
        draw_spectrum(figure, title, spectrum.spectra, spectrum.responses, spectrum.matches, shown)
        run.artifact(figure)
        run.artifact(results)
        say(f"\n{spectrum.tables()}\n")
        say(f"Figure: {figure}")
        say(f"Numbers: {results}")

    def _draw_bands(self, distilled: DistilledSet, teacher: Teacher, spectrum: Spectrum, path: Path) -> None:
        spec = self.data.spec
        positions = first_of_each_class(distilled)
        images = spec.normalise(distilled.images[positions])
        device = device_of(self._accelerator)
        drawn = []
        for band in PICTURED_BANDS:
            made = band_images(teacher, hidden(spectrum.spectra), images, band, spec, device=device)
            if made is None:
                say(f"No picture of the {band} band: no hidden layer of {teacher.name} has a direction in it")
            else:
                drawn.append(made)
        draw_band_pictures(path, spec, distilled.labels[positions].tolist(), to_pixels(images, spec), drawn)
        say(f"Pictures of the bands: {path}")

    def _about(self, teacher: Teacher, statistics: Statistics) -> dict[str, Any]:
        module, curriculum = self.module, self._curriculum
        return {
            "format": RESULTS_FORMAT,
            "dataset": self.data.spec.name,
            "teacher": {"network": teacher.name, "fingerprint": teacher.fingerprint, "accuracy": teacher.accuracy},
            "statistics": statistics.fingerprint,
            "signal": statistics.signal,
            "method": module.method.name,
            "beta": module.beta,
            "rounds": module.ipc,
            "curriculum": None if curriculum is None else type(curriculum).__name__,
            "sets": {
                name: {"fingerprint": one.fingerprint(), "method": one.manifest.get("method"), "images": len(one)}
                for name, one in self.sets.items()
            },
            "environment": environment(),
        }

    def _shown(self, statistics: Statistics) -> list[int]:
        names = statistics.layers
        if missing := [name for name in self.layers if name not in names]:
            raise ValueError(f"got layers {missing}, expected some of {', '.join(names)}: correct --layers")
        if self.layers:
            return [names.index(name) for name in self.layers]
        return shown_layers(len(names))

    @property
    def _accelerator(self) -> str:
        return str(self.trainer_arguments.get("accelerator", "auto"))

    @property
    def _curriculum(self) -> Curriculum | None:
        given = self.trainer_arguments.get("callbacks") or []
        callbacks = given if isinstance(given, list | tuple) else [given]
        return next((one.curriculum for one in callbacks if isinstance(one, CurriculumCallback)), None)

    def _picture_files(self) -> dict[str, Path]:
        """Return the file of each set's band pictures."""
        return {name: self.output / f"bands_{name}.png" for name in self.sets}

    def _check_output(self, overwrite: bool) -> None:
        files = [self.output / FIGURE_FILE, self.output / RESULTS_FILE]
        files += list(self._picture_files().values()) if self.pictures else []
        if (holds := [file.name for file in files if file.exists()]) and not overwrite:
            raise ValueError(
                f"{self.output} already holds {', '.join(holds)}: replace with --overwrite true, or give another "
                "--output_dir DIR"
            )
        check_writable(self.output)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each file of a distilled set, all different and good as part of a file's name."""
    short = (path.resolve().parent.name if path.stem == _COMMON_STEM else path.stem for path in paths)
    return folder_names(tuple(short))
