"""A set as image parquet in the layout of Hugging Face datasets; the one file that imports pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unidd_pl.distilled import DistilledSet
from unidd_pl.exchange.assembling import GIB, MAX_GIB, decode, encode, stacked
from unidd_pl.exchange.parquet_pages import unpacked_bytes
from unidd_pl.exchange.raw import RawSet
from unidd_pl.files import atomic_write
from unidd_pl.plain_json import parse_json
from unidd_pl.specs import DatasetSpec

PARQUET_NAME = "train-00000-of-00001.parquet"  # the name by which the Hub finds a split
IMAGE_COLUMNS = ("image", "img", "images")
LABEL_COLUMNS = ("label", "labels", "class_id", "fine_label")
_BATCH = 256  # rows decoded at a time
_ROW_GROUP = 1000  # rows; what a reader has to hold at once
_SMALLEST = 64  # bytes of a row; a PNG file has 67 at least
_RATIO = 64  # by which a file may be compressed; pictures hardly can be, bitmaps some ten times


def write_parquet(distilled: DistilledSet, folder: Path) -> None:
    """Write pictures as PNG bytes beside their labels, with the class names as ``datasets`` keeps them."""
    pa, pq = _pyarrow()
    rows = [
        {"bytes": encode(pixels), "path": f"{position:05d}.png"} for position, pixels in enumerate(distilled.images)
    ]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata={"huggingface": _features(distilled)})
    table = pa.Table.from_arrays(
        [pa.array(rows, image), pa.array(distilled.labels.tolist(), pa.int64())], schema=schema
    )
    with atomic_write(folder / PARQUET_NAME) as temporary:
        pq.write_table(table, temporary, row_group_size=_ROW_GROUP)


def read_parquet(path: Path, spec: DatasetSpec) -> RawSet:
    """Read one parquet file, or those of a folder (of its training split where it has several), in order.

    Raises:
        ValueError: If a file is damaged, has no image and label columns, or a picture has another form than the data's.
    """
    files = parquet_files(path) if path.is_dir() else [path]
    pictures, labels = list[Tensor](), list[int]()
    names: Sequence[str] | None = None
    for file in files:
        columns, names = _columns(file)
        for picture, label in _rows(file, *columns):
            where = f"{file}, row {len(labels)}"
            pictures.append(decode(picture, spec, where))
            labels.append(_label(label, where))
    return RawSet(stacked(pictures, spec, str(path)), torch.tensor(labels, dtype=torch.int64), names, "parquet")


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files of a folder or its ``data``: those of the training split where there are splits."""
    files = sorted([*folder.glob("*.parquet"), *(folder / "data").glob("*.parquet")])
    training = [file for file in files if file.name.startswith("train")]
    return training or files


def _columns(file: Path) -> tuple[tuple[str, str], list[str] | None]:
    """Return the names of the image and the label column, and the class names that the file declares."""
    _, pq = _pyarrow()
    try:
        metadata, schema = pq.read_metadata(file), pq.read_schema(file)
        size = unpacked_bytes(file)
    except Exception as error:  # whatever the bytes of a foreign file make its readers stumble over
        raise _damaged(file, error) from error
    _check_size(metadata.num_rows, size, file)
    image, label = (
        next((column for column in columns if column in schema.names), None)
        for columns in (IMAGE_COLUMNS, LABEL_COLUMNS)
    )
    if image is None or label is None:
        raise ValueError(
            f"{file}: got the columns {', '.join(schema.names)}, expected one of {', '.join(IMAGE_COLUMNS)} and one of "
            f"{', '.join(LABEL_COLUMNS)}: rename them"
        )
    return (image, label), _class_names((schema.metadata or {}).get(b"huggingface"), label)


def _check_size(rows: int, size: int, file: Path) -> None:
    """Refuse a file that says more than its own bytes can hold: one picture a million times, or a gigabyte of zeros."""
    there = file.stat().st_size
    if size > min(_RATIO * there, MAX_GIB * GIB) or not 0 <= rows * _SMALLEST <= there:
        raise ValueError(
            f"{file}: got {rows} rows of {size} bytes in a file of {there}, expected a distilled set "
            f"below {MAX_GIB} GiB whose pictures differ: check the file, or write it anew without dictionaries"
        )


def _class_names(metadata: bytes | None, label: str) -> list[str] | None:
    try:
        names = parse_json(metadata or b"{}", label)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _rows(file: Path, image: str, label: str) -> Iterator[tuple[bytes, Any]]:
    for batch in _batches(file, [image, label]):
        for row in batch:
            yield _bytes(row[image], file), row[label]


def _batches(file: Path, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    _, pq = _pyarrow()
    try:
        with pq.ParquetFile(file) as content:
            for batch in content.iter_batches(_BATCH, columns=columns):
                yield batch.to_pylist()
    except Exception as error:  # as above
        raise _damaged(file, error) from error


def _bytes(value: Any, file: Path) -> bytes:
    found = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(found, bytes):
        raise ValueError(
            f"{file}: got an image without its bytes, expected them in the file: save the data set with the pictures "
            "embedded (datasets' Dataset.to_parquet does)"
        )
    return found


def _label(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: got the label {value!r}, expected a whole number")
    return value


def _features(distilled: DistilledSet) -> str:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(distilled.class_names), "_type": "ClassLabel"},
    }
    return json.dumps({"info": {"features": features}}, ensure_ascii=False)


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file}: cannot read it ({type(error).__name__}: {error}), expected a whole parquet file: copy it again"
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415  a second that only this format needs
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(f"parquet needs pyarrow, which cannot be imported ({error}): pip install pyarrow") from error
    return pa, pq
