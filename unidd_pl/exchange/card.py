"""The card of an exported set: what a stranger has to know of it, for people (README.md) and programs (card.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unidd_pl.distilled import DistilledSet
from unidd_pl.files import atomic_write
from unidd_pl.plain_json import read_json
from unidd_pl.specs import DatasetSpec

CARD_NAME = "card.json"
PAGE_NAME = "README.md"
CARD_FORMAT = "unidd_pl.export"
CARD_VERSION = 1  # raise when an older reader would misread a newer card

LICENCES = {
    "digits": "CC BY 4.0 (UCI Machine Learning Repository, optical recognition of handwritten digits)",
    "fashionmnist": "MIT",
    "kmnist": "CC BY-SA 4.0",
    "cifar10": "none stated by its authors (A. Krizhevsky, 2009)",
    "cifar100": "none stated by its authors (A. Krizhevsky, 2009)",
    "imagenet": "ImageNet terms of access: non-commercial research and education; no licence to the pictures",
    "imagenet1k": "ImageNet terms of access: non-commercial research and education; no licence to the pictures",
}
"""Licence of the source data by name, in lower-case letters and digits, as its publishers state it."""

UNKNOWN_LICENCE = "not known; ask the source of the data before passing the set on"


@dataclass(frozen=True)
class Card:
    """What of a card a reader needs.

    Args:
        layout: Layout of the export.
        images: Folder of the pictures within the export.
        spec: Classes and normalisation.
        manifest: The set's.
        fingerprint: That of the set as it was written.
        entries: Names that the export made in its folder; what may be replaced.
    """

    layout: str
    images: str
    spec: DatasetSpec
    manifest: dict[str, Any]
    fingerprint: str
    entries: tuple[str, ...]


def card_of(
    written: DistilledSet,
    original: DistilledSet,
    layout: str,
    *,
    protocol: Mapping[str, Any],
    scores: list[dict[str, Any]],
    licence: str | None,
    soft_label_bytes: int | None,
) -> dict[str, Any]:
    """Return the card of a set, all but what is counted when its files lie there.

    Args:
        written: The set as the layout holds it.
        original: The set that was exported; another where float pixels were rounded.
        layout: Name of the layout.
        protocol: The protocol that it is meant for.
        scores: Rows of an evaluation of it.
        licence: Licence of the source data; None looks the name up.
        soft_label_bytes: Size of a soft-label store that belongs to it; None where labels are made online.
    """
    spec, manifest = written.spec, written.manifest
    known = LICENCES.get("".join(c for c in spec.name.casefold() if c.isalnum()))
    return {
        "format": CARD_FORMAT,
        "version": CARD_VERSION,
        "layout": layout,
        "dataset": spec.name,
        "licence_of_source_data": licence or known or UNKNOWN_LICENCE,
        "classes": list(spec.classes),
        "images_per_class": written.ipc,
        "num_images": len(written),
        "image_shape": list(spec.image_shape),
        "pixels": str(written.images.dtype).removeprefix("torch."),
        "rounded": written is not original,
        "pixel_bytes": written.images.nbytes,
        "soft_label_bytes": soft_label_bytes,
        "fingerprint": written.fingerprint(),
        "fingerprint_before_rounding": original.fingerprint(),
        "method": manifest.get("method"),
        "teacher": {
            "network": manifest.get("teacher_network"),
            "fingerprint": manifest.get("teacher"),
            "accuracy": manifest.get("teacher_accuracy"),
        },
        "protocol": dict(protocol),
        "scores": scores,
        "spec": spec.to_dict(),
        "manifest": manifest,
    }


def write_card(folder: Path, card: dict[str, Any], usage: str) -> None:
    """Write the page and then the card, which marks a complete export."""
    with atomic_write(folder / PAGE_NAME) as temporary:
        temporary.write_text(_page(card, usage), encoding="utf-8")
    with atomic_write(folder / CARD_NAME) as temporary:
        temporary.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_card(folder: Path) -> Card | None:
    """Return the card of an export of ours, or None where the folder is none.

    Raises:
        ValueError: If the card is damaged or of a newer version.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        return None
    cure = "copy the export again, or remove the card to read what is there as a set made elsewhere"
    content: Any = read_json(path, cure)
    if not isinstance(content, dict) or content.get("format") != CARD_FORMAT:
        return None
    if not isinstance(content.get("version"), int) or content["version"] > CARD_VERSION:
        raise ValueError(
            f"{folder / CARD_NAME}: got version {content.get('version')}, expected at most {CARD_VERSION}: "
            "upgrade unidd-pl"
        )
    try:
        return Card(
            layout=str(content["layout"]),
            images=_inside(str(content["images"])),
            spec=DatasetSpec.from_dict(content["spec"]),
            manifest=dict(content["manifest"]),
            fingerprint=str(content["fingerprint"]),
            entries=tuple(str(name) for name in content["entries"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / CARD_NAME}: got a damaged card ({error}), expected one of `unidd export`"
        ) from error


def _inside(folder: str) -> str:
    """Refuse a folder that leads out of the export: its reader would go through all that lies there."""
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ValueError(f"the pictures in {folder[:80]!r}, outside of the export")
    return folder


def _page(card: dict[str, Any], usage: str) -> str:
    """Return the card as a page with the head that Hugging Face reads."""
    c, h, w = card["image_shape"]
    teacher = card["teacher"]
    score = "" if teacher["accuracy"] is None else f", {100 * teacher['accuracy']:.1f} % on the test images"
    soft = "made online by the teacher" if card["soft_label_bytes"] is None else f"{card['soft_label_bytes']:,} bytes"
    facts = [
        ("distilled from", card["dataset"]),
        ("licence of the source data", card["licence_of_source_data"]),
        ("method", card["method"] or "not known"),
        ("images", f"{card['num_images']}, {card['images_per_class']} per class, {w}×{h} px, {c} channel(s)"),
        ("image bytes", f"{card['image_bytes']:,} in files, {card['pixel_bytes']:,} as {card['pixels']} pixels"),
        ("soft labels", soft),
        (
            "teacher",
            f"{teacher['network']} ({str(teacher['fingerprint'])[:12]}){score}" if teacher["network"] else "none",
        ),
        ("protocol", f"{card['protocol']['name']}, {card['protocol']['epochs']} epochs"),
        ("fingerprint (SHA-256 of pixels, labels, classes)", f"`{card['fingerprint']}`"),
        ("checksum (SHA-256 of the files)", f"`{card['checksum']}`"),
    ]
    if "partial" in card["manifest"]:
        facts.append(("partial", f"{card['manifest']['partial']} ({card['manifest'].get('stopped', 'unknown')})"))
    if card["rounded"]:
        facts.append(("rounded", "float pixels, rounded to the 256 levels that this layout has"))
    lines = [
        "---",
        "license: other",
        "task_categories: [image-classification]",
        "tags: [dataset-distillation]",
        "---",
        "",
    ]
    lines += [f"# {card['dataset']}, distilled: {card['method'] or 'a set'}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in facts]
    lines += ["", f"Classes in label order: {', '.join(card['classes'])}.", ""]
    if card["scores"]:
        lines += ["| student | protocol | n | tail mean, top-1 % | last epoch, top-1 % |", "|---|---|---|---|---|"]
        lines += [_score_line(one) for one in card["scores"]]
        lines.append("")
    return "\n".join([*lines, usage.strip(), ""])


def _score_line(score: dict[str, Any]) -> str:
    def shown(figure: dict[str, Any]) -> str:
        spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.1f}"
        return f"{100 * figure['mean']:.1f}{spread}"

    protocol = f"{score['protocol']}, {score['epochs']} epochs"
    return (
        f"| {score['network']} | {protocol} | {score['n']} | {shown(score['tail_mean'])} | "
        f"{shown(score['last_epoch'])} |"
    )
