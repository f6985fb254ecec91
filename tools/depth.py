"""Make depth maps of the training images with a network that you installed: Depth-Anything, DPT and their like.

    uv sync --extra depth                       # once: installs transformers
    uv run tools/depth.py data=coco data.root=FOLDER model=DIR out=DIR
    uv run tools/train.py method=pseudo_depth data=coco data.root=FOLDER data.depth=DIR

model  folder of a depth estimation checkpoint for Hugging Face's transformers (config.json, preprocessor_config.json,
       model.safetensors), downloaded by you; nothing is downloaded here
kind   relative_inverse (near is large, no unit) or metric (metres); by default what the checkpoint says

Images are those of data.train_split: depth is used in training only. Writes DIR/<frame id>/<camera>.png, 16 bits, and
DIR/depth.json, which says what the numbers mean (mwsis/data/depth_files.py); maps made otherwise can be brought into
that form. After ctrl-C or a kill the same command makes what is missing.

Exit code: 0 done, 2 wrong input (one sentence says what), 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from camera.pretrained_folder import load_pretrained, read_architecture, require_transformers
from mwsis.core.errors import ConfigError
from mwsis.training.commands import compose_run, progress_line, run_command, split_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from mwsis.core.frame import Frame
    from mwsis.data.depth_files import DepthWriter

    Predict = Callable[[Tensor], Tensor]

OWN = {"model": "", "out": "", "kind": "auto"}
KIND_OF = {
    "dpt": "relative_inverse",
    "depth_anything": "relative_inverse",
    "zoedepth": "metric",
    "glpn": "metric",
    "depth_pro": "metric",
}
"""What the checkpoints of each architecture give, unless they say otherwise (`depth_estimation_type`)."""


def main(arguments: list[str]) -> None:
    """Read the checkpoint, then the images, and write their maps."""
    own, overrides = split_arguments(arguments, OWN)
    config = compose_run(overrides)
    model = Path(own["model"])
    name, metric = describe(model, own["kind"])

    from mwsis.data.depth_files import DepthWriter
    from mwsis.training.config import typed
    from mwsis.training.prepare import build_source, prepare

    run = typed(config)
    source, writer = build_source(run), DepthWriter(own["out"], metric, name)
    predict = load_predictor(model)
    frames = prepare(run, source, progress_line).train.frames
    made = write_maps(frames, len(frames), writer, predict)
    print(f"depth maps: {own['out']} ({made} made, {len(frames)} frames, {'metres' if metric else 'inverse depth'})")


def describe(model: Path, kind: str) -> tuple[str, bool]:
    """Return the name of a checkpoint and whether it gives metres, of its configuration alone.

    Raises:
        ConfigError: it is not there, or nobody says what it gives.
    """
    kinds = ("relative_inverse", "metric")
    if kind not in ("auto", *kinds):
        raise ConfigError(f"kind={kind}: expected {' or '.join(kinds)}, or auto")
    expected = "a depth estimation checkpoint for transformers, such as a copy of Depth-Anything-V2-Small-hf"
    facts = read_architecture(model, f"model={model}", expected)
    architecture = str(facts["model_type"])
    require_transformers("tools/depth.py")
    if kind == "auto":
        said = {"relative": kinds[0], "metric": kinds[1]}.get(str(facts.get("depth_estimation_type")))
        kind = said or KIND_OF.get(architecture, "")
    if not kind:
        raise ConfigError(
            f"model={model}: what a '{architecture}' gives is not known here; give kind={'|'.join(kinds)}"
        )
    return f"{architecture} {model.resolve().name}", kind == "metric"


def load_predictor(model: Path) -> Predict:
    """Return what makes a depth map of an image (3, H, W) uint8: (n, m) float32, in the network's own resolution.

    Raises:
        ConfigError: transformers cannot load the checkpoint.
    """
    import torch

    processor, network = load_pretrained(model, f"model={model}", "AutoImageProcessor", "AutoModelForDepthEstimation")

    @torch.inference_mode()
    def predict(image: Tensor) -> Tensor:
        pixels = processor(images=image.permute(1, 2, 0).numpy(), return_tensors="pt").to(network.device)
        depth: Tensor = network(**pixels).predicted_depth
        return depth.reshape(depth.shape[-2:]).float().cpu()

    return predict


def write_maps(frames: Iterable[Frame], total: int, writer: DepthWriter, predict: Predict) -> int:
    """Write the maps that are not there yet, and then that all are; return how many were made.

    Args:
        frames: to make maps of.
        total: how many frames.
        writer: where to.
        predict: makes the map of an image (3, H, W) uint8.
    """
    from camera.transforms import decode_image

    made = 0
    for done, frame in enumerate(frames, 1):
        for view in frame.cameras:
            if not writer.has(frame.frame_id, view.name):
                image = decode_image(view.image, f"frame {frame.frame_id}, camera {view.name}")
                writer.add(frame.frame_id, view.name, in_shape(predict(image), image.shape[1], image.shape[2]))
                made += 1
        progress_line("depth maps", done, total)
    writer.finish()
    return made


def in_shape(depth: Tensor, height: int, width: int) -> Tensor:
    """Return a map in the ratio of its image, with about as many pixels as before and no more than the image."""
    from torch.nn.functional import interpolate

    factor = min(1.0, (depth.numel() / (height * width)) ** 0.5)
    size = (max(round(height * factor), 1), max(round(width * factor), 1))
    return interpolate(depth[None, None], size, mode="bilinear", antialias=True)[0, 0]


if __name__ == "__main__":
    run_command(main, __doc__ or "")
