"""Damaged and malicious variants of a file, each a pure function of the file and a number."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch
import yaml

Mutation = Callable[[bytes, random.Random], bytes]

MARKER = "code-was-run"
"""Name of the file that every piece of smuggled code tries to make in the working folder."""

NUMBERS = (-1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1, 10**30)


class Smuggled:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (f"touch {MARKER}",)


# ---- any bytes ----


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 8, 64))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_bits_at_the_start(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 8))):
        changed[draw.randrange(min(len(changed), 400))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def extend(data: bytes, draw: random.Random) -> bytes:
    return data + draw.randbytes(draw.choice((1, 100, 5000)))


def cut_out(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.choice((1, 8, 100)) :]


def repeat_a_part(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start : start + draw.choice((1, 8, 200))] * draw.choice((2, 50)) + data[start:]


def write_a_number(data: bytes, draw: random.Random) -> bytes:
    """Lie about a length, a count or a place."""
    number = struct.pack("<Q", draw.choice(NUMBERS) % 2**64)[: draw.choice((1, 2, 4, 8))]
    start = draw.randrange(min(len(data), draw.choice((16, 400, len(data)))))
    return data[:start] + number + data[start + len(number) :]


ANY: tuple[Mutation, ...] = (
    flip_bits, flip_bits_at_the_start, truncate, extend, cut_out, repeat_a_part, write_a_number
)  # fmt: skip


# ---- trees of plain values ----


def change_tree(tree: Any, draw: random.Random) -> Any:
    """Change one value of nested dictionaries and lists: leave it out, give it another type, size or name."""
    if isinstance(tree, dict) and tree and draw.random() < 0.8:
        key = draw.choice(list(tree))
        if draw.random() < 0.15:
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, key: change_tree(tree[key], draw)}
    if isinstance(tree, list) and tree and draw.random() < 0.8:
        position = draw.randrange(len(tree))
        return [*tree[:position], change_tree(tree[position], draw), *tree[position + 1 :]]
    return draw.choice(
        (None, True, "", "../../etc/passwd", [], {}, [[]], 1.5, 1e308, "x" * 5000, *NUMBERS, {"a": tree})
    )


def deep(levels: int, opening: str, closing: str) -> str:
    return opening * levels + closing * levels


# ---- JSON ----


def change_json(data: bytes, draw: random.Random) -> bytes:
    return json.dumps(change_tree(json.loads(data), draw)).encode()


def malicious_json(data: bytes, draw: random.Random) -> bytes:
    text = data.decode().strip()
    return draw.choice((
        deep(100_000, "[", "]"), deep(100_000, '{"a":', "}"), text[:-1] + ', "format": 1}',
        text[:-1] + ', "x": NaN}', text[:-1] + ', "x": ' + "9" * 10_000 + "}", "null", "[]", "\ufeff" + text, text * 2,
    )).encode()  # fmt: skip


JSON = (*ANY, change_json, malicious_json)


# ---- safetensors ----


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _with_header(header: str, rest: bytes) -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + rest


def change_header(data: bytes, draw: random.Random) -> bytes:
    header, rest = _header(data)
    return _with_header(json.dumps(change_tree(header, draw)), rest)


def change_metadata(data: bytes, draw: random.Random) -> bytes:
    """Change what the file says of itself, which is JSON inside of the header's JSON."""
    header, rest = _header(data)
    metadata = header["__metadata__"]
    key = draw.choice(list(metadata))
    change = draw.choice((change_json, change_json, change_json, malicious_json))
    metadata[key] = change(metadata[key].encode(), draw).decode(errors="replace")
    return _with_header(json.dumps(header), rest)


def lie_in_header(data: bytes, draw: random.Random) -> bytes:
    """Name a tensor twice, give it a huge or another shape, another type of number, or another tensor's bytes."""
    header, rest = _header(data)
    names = [name for name in header if name != "__metadata__"]
    tensor = header[draw.choice(names)]
    lie = draw.randrange(6)
    if lie == 0:
        text = json.dumps(header)
        name = draw.choice(names)
        return _with_header(text[:-1] + f", {json.dumps(name)}: {json.dumps(header[draw.choice(names)])}}}", rest)
    if lie == 1:
        tensor["shape"] = [draw.choice(NUMBERS) for _ in range(draw.randrange(6))]
    elif lie == 2:
        tensor["dtype"] = draw.choice(("F64", "F16", "BF16", "I8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U64"))
    elif lie == 3:
        tensor["data_offsets"] = [draw.choice((*NUMBERS, 8, 16)), draw.choice((*NUMBERS, 8, 16))]
    elif lie == 4:
        tensor["shape"] = [0, draw.choice(NUMBERS)]
        tensor["data_offsets"][1] = tensor["data_offsets"][0]
    else:
        tensor["shape"] = [*reversed(tensor["shape"]), 1][: draw.randrange(6)]
    return _with_header(json.dumps(header), rest)


SAFETENSORS = (*ANY, change_header, change_metadata, change_metadata, lie_in_header)


# ---- torch.save ----


def _archive(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def _zipped(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def change_entry(data: bytes, draw: random.Random) -> bytes:
    """Damage one part of the archive, with the right check sums around it."""
    entries = _archive(data)
    position = draw.choice((0, draw.randrange(len(entries))))  # the pickle comes first
    name, content = entries[position]
    entries[position] = (name, draw.choice(ANY)(content, draw) if content else b"x")
    return _zipped(entries)


def malicious_archive(data: bytes, draw: random.Random) -> bytes:
    entries = _archive(data)
    folder = entries[0][0].partition("/")[0]
    trick = draw.randrange(5)
    if trick == 0:
        return _zipped([(name, bytes(10**7) if "/data/" in name else content) for name, content in entries], 8)
    if trick == 1:
        return _zipped([*entries, ("../../escaped", b"x"), ("/tmp/escaped", b"x")])
    if trick == 2:
        import warnings

        with warnings.catch_warnings(action="ignore"):  # zipfile says that the name is there already
            return _zipped([*entries, draw.choice(entries)])
    if trick == 3:
        return _zipped([(name, content) for name, content in entries if name != draw.choice(entries)[0]])
    return _zipped([(f"{folder}/data.pkl", _smuggling(draw)), *entries[1:]])


def _smuggling(draw: random.Random) -> bytes:
    return draw.choice((
        pickle.dumps(Smuggled(), 2), pickle.dumps({"state_dict": Smuggled()}, 2), pickle.dumps(Smuggled(), 4),
        b"cbuiltins\neval\n(X\x10\x00\x00\x00__import__('os')tR.", b"cbuiltins\nbytearray\n(J\x00\x00\x00\x7ftR.",
        b"ctorch\nFloatTensor\n(J\x00\x00\x00\x7ftR.", b"cposix\nsystem\n(X\x02\x00\x00\x00idtR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
    ))  # fmt: skip


def change_content(data: bytes, draw: random.Random) -> bytes:
    """Save other contents in the proper way."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    buffer = io.BytesIO()
    torch.save(_change_tensors(content, draw), buffer)
    return buffer.getvalue()


def _change_tensors(tree: Any, draw: random.Random) -> Any:
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        key = draw.choice(list(tree))
        if draw.random() < 0.1:
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, key: _change_tensors(tree[key], draw)}
    if isinstance(tree, torch.Tensor):
        huge = torch.zeros(1).expand(2**40)
        return draw.choice((
            tree.double(), tree[None], tree.flatten()[:1], torch.zeros(0), huge, tree.new_full(tree.shape, float("nan"))
            if tree.is_floating_point() else tree - 7, [], None,
        ))  # fmt: skip
    return change_tree(tree, draw)


def smuggle_before(data: bytes, draw: random.Random) -> bytes:
    return _smuggling(draw) + data[draw.choice((0, 100)) :]


TORCH = (*ANY, change_entry, change_entry, malicious_archive, change_content, change_content, smuggle_before)
ARCHIVE = (*ANY, change_entry, change_entry, malicious_archive)
TORCH_LEGACY = (*ANY, flip_bits_at_the_start, write_a_number, smuggle_before)


# ---- YAML ----


def change_yaml(data: bytes, draw: random.Random) -> bytes:
    return yaml.safe_dump(change_tree(yaml.safe_load(data), draw)).encode()


def malicious_yaml(data: bytes, draw: random.Random) -> bytes:
    laughs = "\n".join(
        [f"a0: &a0 [{'x, ' * 9}x]", *(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}*a{i - 1}]" for i in range(1, 10))]
    )
    merges = "\n".join(["b0: &b0 {x: 1}", *(f"b{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}]}}" for i in range(1, 40))])
    text = data.decode()
    return draw.choice((
        laughs, laughs + "\n" + text, merges, text + "\nx: &x [*x]", text + "\nx: &x {x: *x}", text + "\n" + text,
        deep(100_000, "[", "]"), deep(3_000, "[", "]"), deep(30_000, "{a: ", "}"), "- " * 20_000, "? " * 20_000,
        text + f"\nmodel: !!python/object/apply:os.system ['touch {MARKER}']",
        f"!!python/object/apply:os.system ['touch {MARKER}']",
        f"!!python/object/new:subprocess.Popen [[touch, {MARKER}]]",
        "data: {class_path: os.system, init_args: {command: touch " + MARKER + "}}",
        "data: {class_path: subprocess.Popen, init_args: {args: [touch, " + MARKER + "]}}",
        "data: {class_path: builtins.exec}", "--- a\n--- b\n--- c", "&a " * 5_000, "!!binary x", "x: " + "9" * 100_000,
        "\x00", "%YAML 9.9\n---\na: 1", "[" + "1," * 60_000 + "1]", "x: 1:" + "59:" * 5_000 + "59",
    )).encode()  # fmt: skip


YAML = (*ANY, change_yaml, change_yaml, malicious_yaml)


# ---- .beton ----


def lie_about_an_image(data: bytes, draw: random.Random) -> bytes:
    """Write a number over the header, over what is said of an image, or over the table at the end."""
    number = struct.pack("<Q", draw.choice(NUMBERS) % 2**64)[: draw.choice((1, 2, 4, 8))]
    header, fields, samples, table = 24, 2088, 30 * 32, 30 * 24
    start = draw.choice((
        draw.randrange(header), header + draw.randrange(fields), header + fields + draw.randrange(samples),
        len(data) - table + draw.randrange(table - 8),
    ))  # fmt: skip
    return data[:start] + number + data[start + len(number) :]


BETON = (*ANY, *(6 * (lie_about_an_image,)))
