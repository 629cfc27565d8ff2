"""`unidd spectrum`: responses of all methods, figure, tables and JSON, through the command and against numpy."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unidd_pl.bands import BANDS, LIVING_BANDS, LayerSpectrum
from unidd_pl.cli import main
from unidd_pl.data import ImageFolderData
from unidd_pl.distilled import DistilledSet
from unidd_pl.moment_pass import gather_moments
from unidd_pl.responses import MAX_ROUNDS, Response, methods_beside, responses, shown_rounds
from unidd_pl.spectral import (
    CFM,
    METHODS,
    MTT,
    ConstantCurriculum,
    Linear,
    Method,
    QuantileCurriculum,
    SpectralFilter,
    Term,
)
from unidd_pl.spectrum_figure import draw_spectrum
from unidd_pl.spectrum_results import Spectrum
from unidd_pl.statistics import Statistics, load_statistics
from unidd_pl.teachers import Teacher

CONFIGS = Path(__file__).parent.parent / "configs"
EIGENVALUES = torch.tensor([4.0, 1.0, 0.2, 1e-3], dtype=torch.float64)
BETA, ROUNDS = 0.1, 10


def by_user(found: tuple[Response, ...], user: str, round_index: int | None = None) -> Response:
    (one,) = [one for one in found if user in one.users and one.round_index == round_index]
    return one


@pytest.fixture
def found() -> tuple[Response, ...]:
    return responses(methods_beside(CFM()), BETA, ROUNDS, [EIGENVALUES, EIGENVALUES / 10])


class TestResponses:
    def test_equal_the_formulas_over_their_maximum(self, found: tuple[Response, ...]) -> None:
        values = EIGENVALUES.numpy()
        alpha, steps = 0.5 / 4.0, 50
        expected = {
            "dm (Φ)": np.ones(4),
            "lfm": values,
            "mtt (Ψ)": (1 - alpha * values) ** steps,
            "mtt (Φ)": (1 - (1 - alpha * values) ** steps) / values,
            "hfm": 1 / (values + BETA),
        }
        for user, response in expected.items():
            got = by_user(found, user).at(EIGENVALUES, 0)
            np.testing.assert_allclose(got, response / response.max(), rtol=1e-9)

    def test_have_their_maximum_at_one(self, found: tuple[Response, ...]) -> None:
        for one in found:
            for layer, eigenvalues in enumerate((EIGENVALUES, EIGENVALUES / 10)):
                response = one.at(eigenvalues, layer)
                assert float(response.max()) == 1
                assert float(response.min()) >= 0

    def test_a_filter_that_is_zero_stays_zero(self) -> None:
        assert Response(Linear(), (), ("lfm",)).at(torch.zeros(3), 0).tolist() == [0, 0, 0]

    def test_equal_terms_of_several_methods_are_one(self, found: tuple[Response, ...]) -> None:
        fixed = [one for one in found if one.round_index is None]
        assert [(one.name, one.users) for one in fixed] == [
            ("1", ("dm (Φ)", "dc (Φ)", "sre2l (Φ)")),
            ("λ", ("dc (Ψ)", "sre2l (Ψ diagonal)", "lfm")),
            ("(1−αλ)^p (step_size = 0.5, steps = 50)", ("mtt (Ψ)",)),
            ("(1−(1−αλ)^p)/λ (step_size = 0.5, steps = 50)", ("mtt (Φ)",)),
            ("1/(λ+β)", ("frepo (Φ)", "hfm")),
        ]
        names = {user.split()[0] for one in found for user in one.users}
        assert names == {method().name for method in METHODS}  # type: ignore[call-arg]

    def test_a_curriculum_gives_one_for_each_round(self, found: tuple[Response, ...]) -> None:
        rounds = [one for one in found if one.round_index is not None]
        assert [one.round_index for one in rounds] == list(range(ROUNDS))
        assert {one.users for one in rounds} == {("cfm",)}
        for one in rounds:
            expected = BETA * (1 + math.cos(math.pi * (one.round_index or 0) / ROUNDS)) / 2
            assert one.betas == pytest.approx((expected, expected))

    def test_the_curriculum_of_the_config_is_used_layer_by_layer(self) -> None:
        layers = [EIGENVALUES, EIGENVALUES / 10]
        constant = responses([CFM()], BETA, 3, layers, ConstantCurriculum())
        assert {one.betas for one in constant} == {(BETA, BETA)}
        quantile = responses([CFM()], BETA, 3, layers, QuantileCurriculum(first=1.0, last=0.5))
        assert quantile[0].betas == pytest.approx((4.0, 0.4))
        ratio = quantile[1].at(layers[1], 1) / quantile[1].at(layers[0], 0)
        np.testing.assert_allclose(ratio, np.ones(4), rtol=1e-9)  # spectrum and β scale alike

    @pytest.mark.parametrize("num_rounds", [1, 2, 10, 11, 50])
    def test_rounds_shown_are_few_and_hold_both_ends(self, num_rounds: int) -> None:
        rounds = shown_rounds(num_rounds)
        assert len(rounds) == min(num_rounds, MAX_ROUNDS)
        assert (rounds[0], rounds[-1]) == (0, num_rounds - 1)
        assert list(rounds) == sorted(set(rounds))

    def test_the_method_of_the_config_takes_the_place_of_its_name(self) -> None:
        other = MTT(steps=7)
        beside = methods_beside(other)
        assert [one.name for one in beside] == [one().name for one in METHODS]  # type: ignore[call-arg]
        assert other in beside
        mine = Method("mine", "low", (Term(Linear(), "ffc"),))
        assert methods_beside(mine)[-1] is mine
        assert by_user(responses(methods_beside(mine), BETA, 1, [EIGENVALUES]), "mine (Ψ)").name == "λ"

    def test_a_filter_of_ones_own_may_use_beta_without_saying_so(self) -> None:
        class Mine(SpectralFilter):
            """f(λ) = λ^β."""

            def response(self, eigenvalues: Tensor, beta: float, largest: Tensor | None = None) -> Tensor:
                return eigenvalues**beta

            def matrix(self, ffc: Tensor, beta: float, largest: Tensor | None = None) -> Tensor:
                raise NotImplementedError

        (one,) = responses([Method("mine", "low", (Term(Mine(), "flc"),))], 2.0, 1, [EIGENVALUES])
        assert one.betas == (2.0,)
        np.testing.assert_allclose(one.at(EIGENVALUES, 0), (EIGENVALUES / 4) ** 2)


@pytest.fixture(scope="module")
def spectra(tiny_statistics: Statistics) -> tuple[LayerSpectrum, ...]:
    pairs = zip(tiny_statistics.layers, tiny_statistics.moments, strict=True)
    return tuple(LayerSpectrum.of(layer, moments) for layer, moments in pairs)


class TestFigure:
    def test_is_drawn_with_and_without_sets(
        self, spectra: tuple[LayerSpectrum, ...], tiny_statistics: Statistics, tmp_path: Path
    ) -> None:
        filters = responses(methods_beside(CFM()), BETA, 3, tiny_statistics.spectra)
        matches = [one.compare(moments) for one, moments in zip(spectra, tiny_statistics.moments, strict=True)]
        far = replace(matches[1], flc_matched={"low": -30.0, "middle": -0.5, "high": None, "dead": None})
        sizes = []
        for number, sets in enumerate(({}, {"a": matches, "b": [matches[0], far]})):
            path = tmp_path / f"{number}.png"
            draw_spectrum(path, "title", spectra, filters, sets, [1, 0])
            with Image.open(path) as image:
                assert image.format == "PNG"
                sizes.append(image.size)
        assert sizes[0] == sizes[1]
        assert sizes[0][0] >= 1000
        assert sizes[0][1] >= 600

    def test_a_layer_where_all_is_dead(self, spectra: tuple[LayerSpectrum, ...], tmp_path: Path) -> None:
        dead = replace(spectra[1], eigenvalues=torch.zeros_like(spectra[1].eigenvalues))
        filters = responses(methods_beside(CFM()), BETA, 1, [dead.eigenvalues])
        draw_spectrum(tmp_path / "dead.png", "title", [dead], filters, {}, [0])
        assert (tmp_path / "dead.png").stat().st_size > 0
        content = Spectrum((dead,), filters, {}).to_dict()["layers"][0]
        assert content["responses"] == []
        assert content["directions"]["dead"] == dead.channels

    def test_figures_of_other_programs_are_left_alone(self, spectra: tuple[LayerSpectrum, ...], tmp_path: Path) -> None:
        from matplotlib import _pylab_helpers

        draw_spectrum(tmp_path / "one.png", "title", spectra, (), {}, [0])
        assert not _pylab_helpers.Gcf.get_all_fig_managers()


@dataclass
class Finished:
    """A finished `unidd spectrum` on the tiny folder: all training images as one set, a few as another."""

    folder: Path
    arguments: list[str]
    sets: dict[str, Path]
    printed: str

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "out/spectrum.json").read_text())
        return content


@pytest.fixture(scope="module")
def finished(image_folder: Path, folder_data: ImageFolderData, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("spectrum")
    images, labels = folder_data.train.read(range(30)), folder_data.train.labels
    sets = {"everything": folder / "everything/distilled.safetensors", "few": folder / "few.safetensors"}
    DistilledSet(images, labels, folder_data.spec, {"method": "all"}).save(sets["everything"])
    floats = images[::10].float() / 255
    DistilledSet(floats, labels[::10], folder_data.spec, {"teacher": "another"}).save(sets["few"])
    arguments = [
        "spectrum", "--config", str(CONFIGS / "cfm_folder.yaml"), "--data.init_args.root", str(image_folder),
        "--teacher.epochs", "2", "--teacher.network", "convnet-w8-d2", "--model.init_args.ipc", "4",
        "--model.init_args.signal", "class", "--cache_dir", str(folder / "cache"), "--trainer.accelerator", "cpu",
        "--tracking.enabled", "false", "--output_dir", str(folder / "out"),
    ]  # fmt: skip
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([*arguments, "--distilled", *map(str, sets.values()), "--pictures", "true"])
    return Finished(folder, arguments, sets, printed.getvalue())


class TestCommand:
    def test_writes_figure_numbers_and_pictures(self, finished: Finished) -> None:
        names = {path.name for path in (finished.folder / "out").iterdir()}
        assert names == {"spectrum.png", "spectrum.json", "bands_everything.png", "bands_few.png"}
        for name in names - {"spectrum.json"}:
            with Image.open(finished.folder / "out" / name) as image:
                assert image.format == "PNG"
                assert min(image.size) > 250
            assert f"{finished.folder / 'out' / name}" in finished.printed

    def test_numbers_of_the_real_side_are_those_of_the_statistics(self, finished: Finished) -> None:
        (path,) = (finished.folder / "cache/statistics").iterdir()
        statistics = load_statistics(path)
        content = finished.content
        assert content["statistics"] == statistics.fingerprint
        assert (content["signal"], content["method"], content["rounds"]) == ("class", "cfm", 4)
        for layer, name, moments in zip(content["layers"], statistics.layers, statistics.moments, strict=True):
            values, directions = np.linalg.eigh(moments.ffc.numpy())
            values, directions = values[::-1], directions[:, ::-1]
            assert layer["layer"] == name
            np.testing.assert_allclose(layer["eigenvalues"], values.clip(0), rtol=1e-5, atol=1e-9)
            before = (values.cumsum() - values) / values.sum()
            low = directions[:, (before < 0.9) & (values > 1e-6 * values[0])]
            assert layer["directions"]["low"] == low.shape[1]
            assert sum(layer["directions"].values()) == layer["channels"] == len(values)
            flc = moments.flc.numpy()
            assert layer["flc_share"]["low"] == pytest.approx(np.sum((low.T @ flc) ** 2) / np.sum(flc**2), rel=1e-5)

    def test_a_set_of_all_real_images_matches_everything(self, finished: Finished) -> None:
        for layer in finished.content["layers"]:
            match = layer["sets"]["everything"]
            for band in LIVING_BANDS:
                assert match["variance_ratio"][band] is None or match["variance_ratio"][band] == pytest.approx(1, 1e-3)
                assert match["flc_matched"][band] is None or match["flc_matched"][band] == pytest.approx(1, abs=1e-3)
            alive = layer["channels"] - layer["directions"]["dead"]
            np.testing.assert_allclose(match["variances"][:alive], layer["eigenvalues"][:alive], rtol=1e-3)
            few = layer["sets"]["few"]
            assert few["flc_matched"]["low"] < 0.9999
            assert few["flc_matched"].keys() == few["variance_ratio"].keys() == set(BANDS)

    def test_responses_go_with_the_eigenvalues(self, finished: Finished) -> None:
        content = finished.content
        assert [one["round"] for one in content["responses"]] == [None] * 5 + [0, 1, 2, 3]
        linear = [one["filter"] for one in content["responses"]].index("λ")
        for layer in content["layers"]:
            values = np.array(layer["eigenvalues"][: layer["channels"] - layer["directions"]["dead"]])
            assert len(layer["responses"]) == len(content["responses"])
            np.testing.assert_allclose(layer["responses"][linear], values / values[0], rtol=1e-4)
            resolvent = 1 / (values + content["responses"][-1]["betas"][0])
            np.testing.assert_allclose(layer["responses"][-1], resolvent / resolvent.max(), rtol=1e-4)

    def test_tables_show_the_numbers(self, finished: Finished) -> None:
        for number, layer in enumerate(finished.content["layers"]):
            share, count = layer["flc_share"]["low"], layer["directions"]["low"]
            largest = f"{layer['eigenvalues'][0]:.2e}"
            line = rf"^{layer['layer']} +{layer['channels']} +{re.escape(largest)} +\S+ +{count}, {share:.1%} "
            assert re.search(line, finished.printed, re.MULTILINE), number
            matched = layer["sets"]["few"]["flc_matched"]["low"]
            assert re.search(rf"^{layer['layer']} +{matched:.2f} ", finished.printed, re.MULTILINE)
        assert finished.printed.index("\neverything\n") < finished.printed.index("\nfew\n")

    def test_another_teacher_than_the_sets_is_said(self, finished: Finished) -> None:
        assert "Note: few was distilled with another teacher (another)" in finished.printed
        assert "Note: everything" not in finished.printed

    def test_without_sets_and_for_chosen_layers(
        self, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "plain"
        main([*finished.arguments[:-1], str(out), "--layers", "layers.conv.1", "--model.init_args.signal", "mean"])
        content = json.loads((out / "spectrum.json").read_text())
        assert content["sets"] == {}
        assert set(content["layers"][0]["flc_share"].values()) == {None}  # normalised pixels have no mean
        assert content["layers"][1]["flc_share"]["low"] > 0
        assert re.search(r"^layers.conv.0 .* n/a", capsys.readouterr().out, re.MULTILINE)
        with Image.open(out / "spectrum.png") as one, Image.open(finished.folder / "out/spectrum.png") as two:
            assert one.size[1] < two.size[1]  # a row less

    def test_takes_the_config_that_a_run_recorded_and_a_method_at_batchnorms(
        self, finished: Finished, tmp_path: Path
    ) -> None:
        main(
            [*finished.arguments[:-1], str(tmp_path), "--model.init_args.method", "unidd_pl.spectral.SRe2L",
             "--trainer.callbacks", "null", "--checkpoint_every", "7", "--pixel_type", "float32"]
        )  # fmt: skip
        content = json.loads((tmp_path / "spectrum.json").read_text())
        assert [one["layer"] for one in content["layers"]] == ["layers.conv.0", "layers.conv.1"]
        assert (content["method"], content["curriculum"]) == ("sre2l", None)

    def test_is_tracked(self, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        # An address of its own: MLflow keeps the store of an address open, also where the folder changes below it.
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        tracked = [*finished.arguments[:-1], "out", "--tracking.enabled", "true", "--tracking.uri", uri]
        main([*tracked, "--distilled", str(finished.sets["few"])])

        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("unidd")
        assert experiment is not None
        # Teacher and statistics are from the cache, and new to this experiment.
        runs = {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}
        assert runs.keys() == {"teacher", "statistics", "spectrum"}
        run = runs["spectrum"]
        assert (run.data.tags["stage"], run.info.status) == ("spectrum", "FINISHED")
        files = {entry.path for entry in client.list_artifacts(run.info.run_id)}
        assert {"spectrum.png", "spectrum.json"} <= files


class TestBadInput:
    @pytest.fixture
    def refused(self, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        def run(*arguments: str) -> str:
            with pytest.raises(SystemExit) as ended:
                main([*finished.arguments[:-1], str(tmp_path / "out"), *arguments])
            assert ended.value.code == 2
            return capsys.readouterr().err

        return run

    def test_results_are_not_overwritten(self, refused: Callable[..., str], finished: Finished) -> None:
        before = (finished.folder / "out/spectrum.json").read_bytes()
        message = refused("--output_dir", str(finished.folder / "out"))
        assert "already holds spectrum.png, spectrum.json: replace with --overwrite true, or give another" in message
        message = refused("--output_dir", str(finished.folder / "out"), "--distilled", str(finished.sets["few"]),
                          "--pictures", "true")  # fmt: skip
        assert "spectrum.json, bands_few.png: replace" in message
        assert (finished.folder / "out/spectrum.json").read_bytes() == before

    def test_overwrite_replaces(self, finished: Finished, tmp_path: Path) -> None:
        (tmp_path / "spectrum.json").write_text("old")
        main([*finished.arguments[:-1], str(tmp_path), "--overwrite", "true"])
        assert json.loads((tmp_path / "spectrum.json").read_text())["format"] == "unidd-spectrum-1"

    def test_set_of_other_classes(
        self, refused: Callable[..., str], folder_data: ImageFolderData, tmp_path: Path
    ) -> None:
        other = replace(folder_data.spec, classes=("one", "two", "three"))
        DistilledSet(folder_data.train.read([0]), torch.tensor([0]), other, {}).save(tmp_path / "o.safetensors")
        message = refused("--distilled", str(tmp_path / "o.safetensors"))
        assert "the distilled set does not fit the data" in message
        assert "['one', 'two', 'three'] not among the 3 expected" in message

    def test_file_that_is_no_distilled_set(self, refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "no.safetensors").write_text("nothing")
        assert "no.safetensors" in refused("--distilled", str(tmp_path / "no.safetensors"))
        assert "missing.safetensors" in refused("--distilled", str(tmp_path / "missing.safetensors"))

    def test_pictures_of_nothing(self, refused: Callable[..., str]) -> None:
        assert "got pictures without a distilled set: give --distilled FILE" in refused("--pictures", "true")

    def test_unknown_layer(self, refused: Callable[..., str]) -> None:
        message = refused("--layers", "conv9")
        assert "got layers ['conv9'], expected some of layers.conv.0, layers.conv.1" in message

    def test_unwritable_output(self, refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "cannot write in the folder" in refused("--output_dir", str(tmp_path / "file/out"))


def test_sets_of_one_name_are_told_apart(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = str(finished.sets["few"])
    main([*finished.arguments[:-1], str(tmp_path), "--distilled", few, few])
    assert json.loads((tmp_path / "spectrum.json").read_text())["sets"].keys() == {"few", "few_2"}


def test_moments_do_not_depend_on_batches(tiny_teacher: Teacher, folder_data: ImageFolderData) -> None:
    images, labels = folder_data.train.read(range(9)), folder_data.train.labels[:9]
    layers = ("layers.conv.0", "layers.conv.1")
    whole = gather_moments(tiny_teacher, [(images, labels)], layers, "class", folder_data.spec)
    parts = [(images[a:b].float() / 255, labels[a:b]) for a, b in ((0, 4), (4, 9))]
    split = gather_moments(tiny_teacher, parts, layers, "class", folder_data.spec)
    for one, two in zip(whole, split, strict=True):
        torch.testing.assert_close(one.ffc, two.ffc, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(one.flc, two.flc, rtol=1e-5, atol=1e-7)
