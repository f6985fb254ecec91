"""Turn 2D boxes of other tools into the boxes.json of your own recordings (docs/guides/own_data.md).

    uv run tools/boxes.py root=FOLDER from=yolo labels=DIR names=car,person,bicycle
    uv run tools/boxes.py root=FOLDER from=coco labels=FILE.json classes=car:Vehicle,bus:Vehicle,person:Pedestrian

Every image under FOLDER/images is listed. from=yolo reads DIR/CAMERA/FRAME.txt for images/CAMERA/FRAME.jpg, names= are
its classes in order; from=coco finds an image by the end of its file_name. classes= says what each name becomes;
others are left out. Without it names stay as they are.

Writes FOLDER/boxes.json, which must not be there, or out=FILE; nothing if there is a mistake in the labels.
Exit code: 0 done, 2 wrong input (every mistake is listed, at most 20 of a kind).
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from mwsis.core.errors import ConfigError, DataError, closest_name
from mwsis.training.commands import run_command, split_arguments

OWN = {"root": "", "from": "", "labels": "", "names": "null", "classes": "null", "out": "null"}
FORMATS = ("coco", "yolo")


def main(arguments: list[str]) -> None:
    """Read, rename, write."""
    own, unknown = split_arguments(arguments, OWN)
    if unknown:
        key = unknown[0].partition("=")[0]
        raise ConfigError(f"'{key}' is no key of this command{closest_name(key, OWN)}")
    if own["from"] not in FORMATS:
        raise ConfigError(f"from={own['from']}: no such format{closest_name(own['from'], FORMATS)}")
    root, labels = Path(own["root"]), Path(own["labels"])
    out = root / "boxes.json" if own["out"] == "null" else Path(own["out"])
    if out.exists():
        raise ConfigError(f"{out}: is there already; move it away or give out=FILE")
    if own["from"] == "yolo" and not labels.is_dir():
        raise ConfigError(f"labels={labels}: no such folder; expected one of text files")

    from mwsis.core.files import write_json
    from mwsis.data.box_import import coco_boxes, listed_images, yolo_boxes
    from mwsis.data.problems import read_json

    images = listed_images(root / "images")
    if own["from"] == "yolo":
        names = names_of(own["names"])
        content, problems = yolo_boxes(labels, names, images, classes_of(own["classes"], names))
    else:
        old = read_json(labels)
        known = [str(one.get("name")) for one in old.get("categories", [])] if isinstance(old, dict) else []
        content, problems = coco_boxes(labels, images, classes_of(own["classes"], known))
    for sentence in problems.sentences():
        print(f"problem: {sentence}", file=sys.stderr)
    if len(problems):
        raise DataError(f"labels={labels}: problems: {len(problems):,}; nothing was written")
    write_json(out, content)
    print_counts(content)
    print(f"boxes: {out}")


def print_counts(content: dict[str, list[dict[str, object]]]) -> None:
    """Print how many boxes there are of each category."""
    name_of = {one["id"]: one["name"] for one in content["categories"]}
    counts = Counter(name_of[one["category_id"]] for one in content["annotations"])
    said = ", ".join(f"{counts[name]} {name}" for name in name_of.values())
    print(f"{len(content['images'])} images, {len(content['annotations'])} boxes: {said}")


def names_of(text: str) -> list[str]:
    """Return YOLO's classes in order."""
    names = text.split(",")
    if text == "null" or not all(names) or len(set(names)) != len(names):
        raise ConfigError(f"names={text}: expected YOLO's classes in order, such as names=car,person,bicycle")
    return names


def classes_of(text: str, names: list[str]) -> dict[str, str]:
    """Return what each name becomes."""
    if text == "null":
        return {name: name for name in names}
    pairs = [pair.partition(":") for pair in text.split(",")]
    if not all(old and new for old, _, new in pairs):
        raise ConfigError(f"classes={text}: expected old and new names, such as classes=car:Vehicle,person:Pedestrian")
    for old, _, _ in pairs:
        if old not in names:
            raise ConfigError(f"classes={text}: no class '{old}'{closest_name(old, names)}")
    return {old: new for old, _, new in pairs}


if __name__ == "__main__":
    run_command(main, __doc__ or "")
