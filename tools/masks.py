"""Make masks of the drawn boxes of the training images with a segment-anything network that you installed.

    uv sync --extra depth                       # once: installs transformers
    uv run tools/masks.py model=sam2 weights=DIR data=coco data.root=FOLDER out=masks.json
    uv run tools/train.py method=full data=coco data.root=FOLDER data.masks=masks.json

model    sam2 (SAM 2, 2.1) or sam
weights  folder of its checkpoint for Hugging Face's transformers (config.json, preprocessor_config.json,
         model.safetensors), downloaded by you; nothing is downloaded here
out      the COCO file to write

Each box of data.train_split is a prompt; a box below 64 px is shown enlarged. A mask counts as much as the network
trusts it, times how well the box around it is the box that was drawn (mask_weight); below .8 of either it counts
nothing and its box alone teaches. A pixel that two masks claim goes to the nearer object by LiDAR, else to the smaller
one. The file says what made it: model, SHA-256 of the weights, and of each mask predicted_iou, tight_iou, stability,
overlap. After ctrl-C or a kill the same command makes what is missing.

Masks made so are no ground truth, but the network has learned from masks that people drew: say so beside your scores.

Exit code: 0 done, 2 wrong input (one sentence says what), 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camera.pretrained_folder import require_transformers
from mwsis.training.commands import compose_run, progress_line, run_command, split_arguments

if TYPE_CHECKING:
    from camera.segment_anything import Look, PromptedMasks
    from mwsis.core.frame import Frame
    from mwsis.data.mask_writer import MaskWriter

OWN = {"model": "", "weights": "", "out": ""}


def main(arguments: list[str]) -> None:
    """Read the checkpoint, then the images, and write their masks."""
    own, overrides = split_arguments(arguments, OWN)
    config = compose_run(overrides)

    from camera.segment_anything import check_network, load_network
    from mwsis.data.mask_writer import MaskWriter
    from mwsis.training.config import typed
    from mwsis.training.prepare import build_source, prepare

    model, weights = own["model"], Path(own["weights"])
    files = check_network(model, weights)
    require_transformers("tools/masks.py")
    run = typed(config)
    source = build_source(run)
    writer = MaskWriter(own["out"], source.class_names, provenance(model, weights, files))
    look = load_network(model, weights)
    frames = prepare(run, source, progress_line).train.frames
    made = write_masks(frames, len(frames), writer, look, model)
    written = writer.finish()
    kept = sum(row["mask_weight"] > 0 for row in written)
    print(f"masks: {own['out']} ({len(written)} boxes, {kept} masks trusted, {made} images new, {len(frames)} frames)")


def provenance(model: str, weights: Path, files: list[Path]) -> dict[str, Any]:
    """Return what makes the masks: with all this the same, they are the same."""
    from camera.segment_anything import MIN_PREDICTED_IOU, MIN_TIGHT_IOU, SMALL_SIDE
    from mwsis.data.manifest import file_sha256

    return {
        "model": model,
        "checkpoint": weights.resolve().name,
        "sha256": {path.name: file_sha256(path) for path in files},
        "prompt": "box",
        "min_predicted_iou": MIN_PREDICTED_IOU,
        "min_tight_iou": MIN_TIGHT_IOU,
        "enlarged_below_px": SMALL_SIDE,
    }


def write_masks(frames: Iterable[Frame], total: int, writer: MaskWriter, look: Look, model: str) -> int:
    """Make the masks that are not there yet; return of how many images.

    Args:
        frames: to make masks of.
        total: how many frames.
        writer: where to.
        look: the network.
        model: its name, the ``mask_source`` of every mask.
    """
    from camera.segment_anything import distances_of, prompted_masks, without_overlaps
    from camera.transforms import decode_image

    made = 0
    for done, frame in enumerate(frames, 1):
        for index, view in enumerate(frame.cameras):
            if writer.has(frame.frame_id, view):
                continue
            image = decode_image(view.image, f"frame {frame.frame_id}, camera {view.name}")
            found = prompted_masks(image, view.labels.objects.boxes, look)
            found = without_overlaps(found, distances_of(frame, index, found.masks))
            writer.add(frame.frame_id, view, annotations(found, model))
            made += 1
        progress_line("masks", done, total)
    return made


def annotations(found: PromptedMasks, model: str) -> list[dict[str, Any]]:
    """Return what the file says of each mask of an image."""
    from mwsis.evaluation.coco_masks import json_masks

    rows = []
    areas = found.masks.areas().tolist()
    for index, code in enumerate(json_masks(found.masks)):
        measured = {
            name: round(float(getattr(found, name)[index]), 4)
            for name in ("predicted_iou", "stability", "tight_iou", "overlap")
        }
        rows.append(
            {
                "segmentation": code,
                "area": areas[index],
                "mask_weight": round(float(found.weight[index]), 4),
                "mask_source": model,
                **measured,
            }
        )
    return rows


if __name__ == "__main__":
    run_command(main, __doc__ or "")
