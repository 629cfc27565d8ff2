"""Readers of foreign files: what each refuses, by its message. Spoilt files by the thousand are in tests/fuzzing."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unidd_pl.configs import check_yaml, load_yaml
from unidd_pl.plain_json import parse_json
from unidd_pl.untrusted import UnreadableTensorsError, read_safetensors, read_torch


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nests too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' twice"),
        ('{"a": NaN}', "the number NaN"),
        ("{", "no proper JSON"),
    ],
)
def test_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^settings: .*{message}"):
        parse_json(text, "settings")


def test_a_name_twice_in_a_safetensors_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    twice = header[:-1] + b"," + header[1:]
    path.write_bytes(len(twice).to_bytes(8, "little") + twice + data[8 + length :])
    with pytest.raises(UnreadableTensorsError, match="the key 'x' twice"):
        read_safetensors(path)


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes((10**12).to_bytes(8, "little") + b"{}")
    with pytest.raises(UnreadableTensorsError, match="a header of 1000000000000 bytes in a file of 10"):
        read_safetensors(tmp_path / "a")


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_torch_save_are_read(tmp_path: Path, legacy: bool) -> None:
    content = {"a": torch.arange(5.0), "b": torch.nn.Parameter(torch.ones(2, 2).half()), "n": torch.tensor(3)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    got = read_torch(tmp_path / "a.pt")
    assert got.keys() == content.keys()
    assert all(torch.equal(got[name], content[name]) for name in content)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_torch_file_does_not_run(tmp_path: Path, legacy: bool) -> None:
    torch.save({"a": Touch(tmp_path / "run")}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="the name posix system, which is none of a tensor"):
        read_torch(tmp_path / "a.pt")
    assert not (tmp_path / "run").exists()
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Touch(tmp_path / "run")))
    with pytest.raises(ValueError, match="which is none of a tensor"):
        read_torch(tmp_path / "b.pt")
    assert not (tmp_path / "run").exists()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as small:
        for entry in whole.infolist():
            small.writestr(entry.filename, whole.read(entry))
    assert (tmp_path / "b.pt").stat().st_size < 10**4
    with pytest.raises(ValueError, match="a compressed entry"):
        read_torch(tmp_path / "b.pt")


def test_a_flipped_bit_of_a_torch_file_is_seen(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(bytes(4000)) + 2000] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"Bad CRC|check sum"):
        read_torch(tmp_path / "a.pt")


def test_an_old_torch_file_cannot_ask_for_more_than_it_holds(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(16)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data.replace(b"K\x10", b"J\x00\x00\x00\x70"))
    with pytest.raises(ValueError, match="a storage of 1879048192 numbers in a file of"):
        read_torch(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 2_000_000, "2000000 characters"),
        ("[" * 10_000, "more than 40 levels"),
        ("a: &a [*a]", r"alias \*a of what is not complete"),
        ("a: &a [1, 2, 3]\n" + "\n".join(f"a{i}: &a [{'*a, ' * 9}*a]" for i in range(9)), "aliases written out"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "the YAML key 'c' twice"),
        ("a: [1", "no proper YAML"),
    ],
)
def test_yaml(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_yaml(text)


def test_yaml_that_names_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no plain data"):
        load_yaml(f"!!python/object/apply:os.system ['touch {tmp_path / 'run'}']")
    assert not (tmp_path / "run").exists()


def test_anchors_as_people_use_them_are_read() -> None:
    text = "base: &base {lr: 0.1, epochs: 3}\nlong:\n  <<: *base\n  epochs: 30\n"
    assert load_yaml(text)["long"] == {"lr": 0.1, "epochs": 30}
