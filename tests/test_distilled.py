"""DistilledSet: what goes in comes out, and every bad input says what to do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from unidd_pl import distilled as module
from unidd_pl.distilled import FORMAT, FORMAT_VERSION, HEADER_KEY, DistilledSet, PixelType, to_pixels
from unidd_pl.files import atomic_write
from unidd_pl.specs import DatasetSpec

MANIFEST: dict[str, Any] = {
    "seed": 3,
    "config": {"beta": 0.1, "layers": ["Conv2d"]},
    "teacher": None,
    "β": "é",
}


@pytest.fixture
def spec() -> DatasetSpec:
    return DatasetSpec("toy", ("cat", "dog", "ship"), 3, 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def toy(images: Tensor, labels: Tensor, spec: DatasetSpec) -> DistilledSet:
    return DistilledSet(images, labels, spec, MANIFEST)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_round_trip(toy: DistilledSet, tmp_path: Path, dtype: PixelType) -> None:
    made = DistilledSet.from_normalised(toy.tensors()[0], toy.labels, toy.spec, MANIFEST, dtype)
    made.save(tmp_path / "new" / "set.safetensors")
    read = DistilledSet.load(tmp_path / "new" / "set.safetensors")
    assert read.images.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert torch.equal(read.images, made.images)
    assert torch.equal(read.labels, made.labels)
    assert (read.spec, read.manifest) == (toy.spec, MANIFEST)
    assert read.fingerprint() == made.fingerprint()
    if dtype == "uint8":
        assert torch.equal(read.images, toy.images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_to_pixels_rounds_and_clamps(dtype: torch.dtype) -> None:
    spec = DatasetSpec("grey", ("a", "b"), 1, 2, (0.0,), (1.0,))
    levels = torch.tensor([100.3, 100.7, -40.0, 300.0], dtype=torch.float64).view(1, 1, 2, 2)
    normalised = (levels / 255).to(dtype)
    expected = (normalised.double() * 255).round().clamp(0, 255)  # bfloat16 itself moves 100.3 to 100.6
    pixels = to_pixels(normalised.requires_grad_(), spec)
    assert pixels.tolist() == expected.tolist()
    if dtype != torch.bfloat16:
        assert pixels.flatten().tolist() == [100, 101, 0, 255]


def test_rounding_is_unbiased(spec: DatasetSpec) -> None:
    grey = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    error = to_pixels(spec.normalise(grey), spec).double() - grey * 255
    assert error.abs().max() <= 0.5 + 1e-9
    assert error.mean().abs() < 0.02  # truncation gives −0.5


def test_items(toy: DistilledSet) -> None:
    everything, labels = toy.tensors()
    assert len(toy) == 6
    assert everything.dtype == torch.float32
    image, label = toy[4]
    assert (image.shape, image.dtype, label, type(label)) == ((3, 8, 8), torch.float32, 1, int)
    torch.testing.assert_close(image, everything[4])
    torch.testing.assert_close(toy.spec.denormalise(everything) * 255, toy.images.float())
    with pytest.raises(IndexError):  # how iteration ends
        toy[6]
    batch, batch_labels = next(iter(torch.utils.data.DataLoader(toy, batch_size=6)))
    assert torch.equal(batch, everything)
    assert torch.equal(batch_labels, labels)


def test_ipc_holds_for_every_class(toy: DistilledSet) -> None:
    assert toy.ipc == 2
    assert DistilledSet(toy.images[:5], toy.labels[:5], toy.spec, {}).ipc == 1
    assert toy.class_names == ("cat", "dog", "ship")


def test_fingerprint_is_of_the_contents(toy: DistilledSet, spec: DatasetSpec) -> None:
    assert DistilledSet(toy.images.clone(), toy.labels, spec, {}).fingerprint() == toy.fingerprint()
    renamed = DatasetSpec("toy", ("dog", "cat", "ship"), 3, 8, spec.mean, spec.std)
    changed = toy.images.clone()
    changed[0, 0, 0, 0] += 1
    others = [
        DistilledSet(toy.images, toy.labels, renamed, {}),
        DistilledSet(changed, toy.labels, spec, {}),
        DistilledSet(toy.images, toy.labels.flip(0), spec, {}),
    ]
    assert len({toy.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_equal_sets_give_equal_bytes(toy: DistilledSet, tmp_path: Path) -> None:
    reordered = dict(reversed(MANIFEST.items()))
    for i in range(8):  # safetensors orders several header entries at random
        DistilledSet(toy.images, toy.labels, toy.spec, reordered if i % 2 else MANIFEST).save(tmp_path / str(i))
    assert len({(tmp_path / str(i)).read_bytes() for i in range(8)}) == 1


def test_the_set_is_a_copy_without_gradient(toy: DistilledSet) -> None:
    pixels = torch.rand(6, 3, 8, 8, requires_grad=True)
    manifest: dict[str, Any] = {"layers": ("a", "b")}
    made = DistilledSet(pixels.transpose(2, 3), toy.labels, toy.spec, manifest)
    manifest["layers"] = None
    assert not made.images.requires_grad
    assert made.manifest == {"layers": ["a", "b"]}  # as a reader of the file gets it


BAD_INPUTS: list[tuple[dict[str, Any], str]] = [
    (
        {"images": torch.zeros(6, 3, 8, 9, dtype=torch.uint8)},
        r"got images of shape \(6, 3, 8, 9\), expected \(n, 3",
    ),
    ({"images": torch.zeros(6, 1, 8, 8, dtype=torch.uint8)}, r"expected \(n, 3, 8, 8\)"),
    ({"images": torch.zeros(3, 8, 8, dtype=torch.uint8)}, "got images of shape"),
    ({"images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, "n ≥ 1"),
    ({"images": torch.zeros(6, 3, 8, 8, dtype=torch.float64)}, "got torch.float64 images"),
    (
        {"images": torch.full((6, 3, 8, 8), 1.5)},
        r"pixels from 1.5 to 1.5, expected \[0, 1\].*from_normalised",
    ),
    ({"images": torch.full((6, 3, 8, 8), -0.1)}, r"expected \[0, 1\]"),
    (
        {"images": torch.zeros(6, 3, 8, 8).index_fill(0, torch.tensor(2), torch.nan)},
        "NaN or infinite.*diverged",
    ),
    ({"labels": torch.zeros(6, dtype=torch.int32)}, r"got torch.int32 labels.*\.long"),
    ({"labels": torch.zeros(5, dtype=torch.int64)}, r"shape \(5,\), expected \(6,\)"),
    ({"labels": torch.tensor([0, 1, 2, 3, 0, 0])}, "labels from 0 to 3, expected 0 to 2"),
    ({"labels": torch.tensor([0, 1, 2, -1, 0, 0])}, "labels from -1 to 2"),
    ({"manifest": {"path": Path("x")}}, "manifest that JSON cannot hold.*convert paths"),
    ({"manifest": {"accuracy": float("nan")}}, "manifest that JSON cannot hold"),
    ({"manifest": []}, "manifest of type list"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS)
def test_bad_input_is_refused(
    images: Tensor, labels: Tensor, spec: DatasetSpec, change: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"images": images, "labels": labels, "spec": spec, "manifest": MANIFEST}
    with pytest.raises(ValueError, match=message):
        DistilledSet(**(arguments | change))


@pytest.mark.parametrize(
    ("images", "dtype", "message"),
    [
        (torch.full((1, 3, 8, 8), torch.inf), "uint8", "NaN or infinite"),
        (torch.full((1, 3, 8, 8), torch.nan), "float32", "NaN or infinite"),
        (torch.zeros(1, 1, 8, 8), "uint8", "got images of shape"),  # would broadcast to three channels
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8", "expected normalised floating-point"),
        (torch.zeros(1, 3, 8, 8), "float16", "got dtype 'float16'"),
    ],
)
def test_bad_normalised_pixels_are_refused(images: Tensor, dtype: Any, message: str, spec: DatasetSpec) -> None:
    with pytest.raises(ValueError, match=message):
        to_pixels(images, spec, dtype)


def test_load_says_what_the_file_is(toy: DistilledSet, tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    toy.save(path)
    complete = path.read_bytes()
    contents = {
        "cut.safetensors": (complete[:-10], "truncated or damaged.*copy it again"),
        "cut_in_header.safetensors": (complete[:40], "truncated or damaged"),
        "text.safetensors": (b"labels: cat, dog", "not a safetensors file"),
        "empty.safetensors": (b"", "not a safetensors file"),
    }
    for name, (data, message) in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            DistilledSet.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"got no file at .*check the path"):
        DistilledSet.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="got a folder at"):
        DistilledSet.load(tmp_path)


def _header(made_for: DatasetSpec, **changes: Any) -> dict[str, str]:
    fields = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "spec": made_for.to_dict(),
        "manifest": {},
    } | changes
    return {HEADER_KEY: json.dumps(fields)}


def test_load_refuses_other_safetensors(toy: DistilledSet, spec: DatasetSpec, tmp_path: Path) -> None:
    tensors = {"images": toy.images, "labels": toy.labels}
    other = DatasetSpec("toy", ("cat", "dog"), 3, 8, spec.mean, spec.std)
    cases: list[tuple[dict[str, Tensor], dict[str, str] | None, str]] = [
        ({"conv1.weight": torch.zeros(2)}, None, "without the tag.*weights of a network"),
        ({"conv1.weight": torch.zeros(2)}, {"format": "pt"}, "without the tag"),
        (tensors, {HEADER_KEY: "{"}, "without the tag"),
        (tensors, _header(spec, format="unidd_pl.teacher"), "without the tag"),
        (
            tensors,
            _header(spec, version=FORMAT_VERSION + 1),
            f"version {FORMAT_VERSION + 1}, expected at most.*upgrade",
        ),
        (tensors, _header(spec, spec={"name": "toy"}), "contradictory contents"),
        (tensors, _header(other), "contradictory contents.*labels from 0 to 2"),
        ({"images": toy.images}, _header(spec), "truncated or damaged.*labels"),
    ]
    for i, (contents, metadata, message) in enumerate(cases):
        save_file(contents, tmp_path / str(i), metadata)
        with pytest.raises(ValueError, match=message):
            DistilledSet.load(tmp_path / str(i))


def test_save_keeps_an_existing_file(toy: DistilledSet, tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"got the existing file .*overwrite=True"):
        toy.save(path)
    assert path.read_text() == "mine"
    toy.save(path, overwrite=True)
    assert DistilledSet.load(path).fingerprint() == toy.fingerprint()


def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    toy: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set.safetensors"
    toy.save(path)
    before = path.read_bytes()

    def full_disk(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: no space left on device")

    monkeypatch.setattr(module, "save_file", full_disk)
    with pytest.raises(ValueError, match=rf"set.safetensors in folder {tmp_path}.*no space left.*make room"):
        toy.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_atomic_write_passes_other_exceptions(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), atomic_write(tmp_path / "a" / "x.npz"):
        raise error
    assert list((tmp_path / "a").iterdir()) == []


def test_atomic_write_is_beside_its_target(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x.npz") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".npz")
        assert not (tmp_path / "x.npz").exists()
        temporary.write_text("whole")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


def test_atomic_write_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=rf"in folder {tmp_path}/file.*another path"),
        atomic_write(tmp_path / "file/x"),
    ):
        pytest.fail("the block ran")
    with pytest.raises(ValueError, match="is a folder"), atomic_write(tmp_path):
        pytest.fail("the block ran")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    with (
        pytest.raises(ValueError, match=rf"in folder {tmp_path}: got.*Permission denied"),
        atomic_write(tmp_path / "x"),
    ):
        pytest.fail("the block ran")


def test_a_saved_set_has_the_usual_permissions(toy: DistilledSet, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    toy.save(tmp_path / "set")  # safetensors alone makes files that only their owner can read
    assert os.stat(tmp_path / "set").st_mode == os.stat(tmp_path / "usual").st_mode


def test_plain_python_reads_it(toy: DistilledSet, tmp_path: Path) -> None:
    toy.save(tmp_path / "set.safetensors")
    script = """
        import sys
        from unidd_pl.distilled import DistilledSet
        data = DistilledSet.load(sys.argv[1])
        image, label = data[0]
        print(len(data), tuple(image.shape), data.class_names[label])
        loaded = {"lightning", "mlflow", "jsonargparse", "torchvision"} & set(sys.modules)
        assert not loaded, loaded
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "set.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "6 (3, 8, 8) cat\n"
