"""All shipped methods and controls on the embedded digits, through the commands, at a tenth of their length."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from unidd_pl.cli import main
from unidd_pl.distilled import DistilledSet
from unidd_pl.spectral import METHODS

CONFIGS = Path(__file__).parent.parent / "configs"
EVAL = CONFIGS / "eval_digits.yaml"
NAMES = sorted(
    path.stem for path in CONFIGS.glob("*_digits.yaml") if path.stem.split("_")[0] not in ("teacher", "eval")
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every run under runs/; not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in NAMES:
            main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--tracking.enabled", "false",
                  "--model.init_args.iterations", "20"])  # fmt: skip
    return folder


@pytest.mark.slow
class TestStudy:
    def test_every_method_and_control_has_a_config(self) -> None:
        assert {f"{kind().name}_digits" for kind in METHODS} <= set(NAMES)
        assert len([name for name in NAMES if name.startswith("control_")]) == 6

    def test_every_set_is_its_own(self, study: Path) -> None:
        sets = {name: DistilledSet.load(study / f"runs/{name}/distilled.safetensors") for name in NAMES}
        assert all(len(one) == 100 for one in sets.values())
        assert len({one.fingerprint() for one in sets.values()}) == len(NAMES)
        assert len({one.manifest["teacher"] for one in sets.values()}) == 1

    def test_one_command_scores_them_all(
        self, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(study)
        sets = [f"runs/{name}/distilled.safetensors" for name in NAMES]
        main(["evaluate", "--config", str(EVAL), "--tracking.enabled", "false", "--distilled", *sets,
              "--protocol.epochs", "60", "--seeds", "2", "--output", "table.json"])  # fmt: skip
        printed = capsys.readouterr().out
        rows = json.loads(Path("table.json").read_text())["rows"]
        assert [row["training_set"] for row in rows] == [*NAMES, "real images"]
        for row in rows:
            assert row["tail_mean"]["mean"] > 0.5, row["training_set"]  # chance is 0.1
            assert re.search(rf"^{row['training_set']} +convnet-w64-d2 +2 ", printed, re.MULTILINE)
