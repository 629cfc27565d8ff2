"""Damaged and malicious variants of pictures, tables, arrays, archives of files and texts, as in mutations.py."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
from typing import Any

import numpy as np
from mutations import (
    ANY,
    MARKER,
    NUMBERS,
    SAFETENSORS,
    YAML,
    Smuggled,
    _header,
    _with_header,
    change_json,
    change_tree,
)
from PIL import Image

from unidd_pl.headers import HEADER_KEY

# ---- texts of lines ----


def change_line(data: bytes, draw: random.Random) -> bytes:
    """Leave a line out, say it twice, or put another in its place."""
    lines = data.split(b"\n")
    place = draw.randrange(len(lines))
    other = draw.choice((
        [], 2 * [lines[place]], [b"x" * 100_000], [b"\xff\xfe"], [b"\x00"], [b"../../etc/passwd"], [b"#"], [b"\t"],
        [lines[place].partition(b"\t")[0]], [b"\r" + lines[place]], [draw.choice(lines)], [lines[place].upper()],
    ))  # fmt: skip
    return b"\n".join([*lines[:place], *other, *lines[place + 1 :]])


TEXT = (*ANY, change_line, change_line, change_line)


def change_entry_of_lines(data: bytes, draw: random.Random) -> bytes:
    """Change one of many lines of JSON."""
    lines = data.splitlines()
    place = draw.randrange(len(lines))
    return b"\n".join([*lines[:place], change_json(lines[place], draw), *lines[place + 1 :]]) + b"\n"


JSON_LINES = (*TEXT, *(4 * (change_entry_of_lines,)))


# ---- sets that hold the text of a config ----


def change_config_of_set(data: bytes, draw: random.Random) -> bytes:
    """Change the YAML that a set says it was made from, inside of the JSON inside of the header."""
    header, rest = _header(data)
    said = json.loads(header["__metadata__"][HEADER_KEY])
    config = draw.choice(YAML)(said["manifest"]["config"].encode(), draw).decode(errors="replace")
    said["manifest"]["config"] = draw.choice((config, config, "{1: a, b: c, model: {init_args: {seed: 1}}}"))
    header["__metadata__"][HEADER_KEY] = json.dumps(said)
    return _with_header(json.dumps(header), rest)


SET_WITH_CONFIG = (*SAFETENSORS, *(12 * (change_config_of_set,)))


# ---- pictures ----


def other_format(data: bytes, draw: random.Random) -> bytes:
    """Put a picture of another format in place of one; one of them is a program, which its reader may run."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n({MARKER}) (w) file closefile\n"
    name = draw.choice(("EPS", "BMP", "GIF", "TIFF", "PPM", "PCX", "TGA", "ICNS", "IM", "SGI", "WEBP", "program"))
    if name == "program":
        return program.encode()
    buffer = io.BytesIO()
    picture.save(buffer, name)
    return buffer.getvalue()


def huge_picture(data: bytes, draw: random.Random) -> bytes:
    """Claim a size that no memory holds."""
    size = draw.choice((2**14, 2**16, 2**31 - 1))
    head = struct.pack(">II", size, size)
    ppm = f"P6 {size} {size} 255\n".encode()
    return draw.choice((data[:16] + head + data[24:], ppm + data, b"GIF89a" + struct.pack("<HH", 65535, 65535) + data))


PICTURE = (*ANY, other_format, huge_picture)


# ---- parquet ----


def change_table(data: bytes, draw: random.Random) -> bytes:
    """Write another table in the proper way: other types, columns missing, bytes damaged or repeated."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    images, labels = table.column("image").to_pylist(), table.column("label").to_pylist()
    bomb = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000_000, np.int32)), pa.array([images[0]["bytes"]]))
    columns = {"image": table.column("image"), "label": table.column("label")}
    change: dict[str, Any] = draw.choice((
        {"label": pa.array([str(one) for one in labels])}, {"label": pa.array([0.5] * 6)}, {"label": pa.nulls(6)},
        {"label": pa.array([2**62] * 6)}, {"label": pa.array([[1]] * 6)}, {"label": pa.array([True] * 6)},
        {"image": pa.nulls(6)}, {"image": pa.array([{"path": "/etc/passwd"}] * 6)}, {"image": pa.array(["x"] * 6)},
        {"image": pa.array([one["bytes"] for one in images])}, {"image": pa.array([b""] * 6)},
        {"image": pa.array([bytes(2**26), *[one["bytes"] for one in images[1:]]])},
        {"image": bomb, "label": pa.array(np.zeros(2_000_000, np.int64))},
        {"image": pa.array([other_format(one["bytes"], draw) for one in images])},
    ))  # fmt: skip
    metadata = dict(table.schema.metadata or {})
    if draw.random() < 0.4:
        change, metadata[b"huggingface"] = {}, change_json(metadata[b"huggingface"], draw)
    columns |= change
    if draw.random() < 0.1:
        columns.pop(draw.choice(list(columns)))
    buffer = io.BytesIO()
    other = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(other, buffer, compression=draw.choice(("snappy", "zstd", "gzip", "none")))
    return buffer.getvalue()


def lie_in_footer(data: bytes, draw: random.Random) -> bytes:
    """Write numbers where the file says what it holds: schema, sizes, places and counts."""
    length = int.from_bytes(data[-8:-4], "little")
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[len(data) - 8 - draw.randrange(length + 8)] = draw.randrange(256)
    return bytes(changed[: len(data)])


def lie_in_pages(data: bytes, draw: random.Random) -> bytes:
    """Write over the heads of pages, which say how much memory they take."""
    changed = bytearray(data)
    start = draw.choice([4, *(place for place in range(len(data) - 4) if data[place : place + 2] == b"\x15\x04")])
    for _ in range(draw.choice((1, 2, 4))):
        changed[min(start + draw.randrange(24), len(data) - 1)] = draw.choice((0, 255, 128, draw.randrange(256)))
    return bytes(changed)


PARQUET = (*ANY, *(3 * (change_table,)), *(3 * (lie_in_footer,)), *(3 * (lie_in_pages,)))


# ---- arrays ----


def change_array(data: bytes, draw: random.Random) -> bytes:
    """Save another array, among them one whose reading would run code, or a head that claims too much."""
    array = np.load(io.BytesIO(data))
    code = np.empty(1, object)
    code[0] = Smuggled()
    other = draw.choice((
        code, array.astype(">f8"), array.astype("f2"), array[None], array.reshape(-1), array.astype(str)[:1],
        np.zeros(3, [("a", "i4")]), array[:0], array.astype(complex), array.T.copy("F"), np.array(7), array > 9,
        np.array(["2020"], "M8[D]"), array.astype("i8") - 2**62, array.astype("f4") * np.nan,
    ))  # fmt: skip
    buffer = io.BytesIO()
    np.save(buffer, other, allow_pickle=True)
    content = buffer.getvalue()
    if draw.random() < 0.3:
        shape = tuple(draw.choice(NUMBERS) for _ in range(draw.randrange(6)))
        buffer = io.BytesIO()
        about = {"descr": draw.choice(("|u1", "<f8", "|O", "<U999999999", "|V0")), "fortran_order": False}
        np.lib.format.write_array_header_2_0(buffer, {**about, "shape": shape})
        content = buffer.getvalue() + data[-100:]
    return content


ARRAY = (*ANY, *(4 * (change_array,)))


# ---- tar ----


def change_members(data: bytes, draw: random.Random) -> bytes:
    """Pack the members anew with one that leads elsewhere, is no file, lies about its size, or is another's twin."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(one, content.read() if (content := tar.extractfile(one)) else b"") for one in tar]
    member, content = draw.choice(members)
    trick = draw.randrange(7)
    if trick == 0:
        member.name = draw.choice(
            ("../../escaped.png", "/tmp/escaped.png", "a/../../x.png", ".png", "x" * 5000 + ".png")
        )
    elif trick == 1:
        member.type = draw.choice(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
        )
        member.linkname = "/etc/passwd"
    elif trick == 2:
        member.pax_headers = {"size": str(draw.choice(NUMBERS)), "GNU.sparse.realsize": str(2**40)}
    elif trick == 3:
        member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40), "path": "a.png"}
    elif trick == 4 and member.name.endswith("json"):
        content = json.dumps(change_tree(json.loads(content), draw)).encode()
        members = [(one, content if one is member else old) for one, old in members]
    else:
        members.append((member, content))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if trick == 6 else "w", format=tarfile.PAX_FORMAT) as tar:
        for one, old in members:
            one.size = len(old)
            tar.addfile(one, io.BytesIO(old))
    return buffer.getvalue()


TAR = (*ANY, *(4 * (change_members,)))
