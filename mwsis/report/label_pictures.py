"""Pictures of single objects as a label-only method labelled them: points hit, missed, taken, made up.

One sheet shows several objects, each with the camera's view of its box and the sweep from above. Which are worth
a look: `LabelQuality.objects`; whole frames are drawn by `gallery.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from camera.transforms import decode_image
from mwsis.core.frame import Frame
from mwsis.core.geometry import box_corners
from mwsis.core.instances import IGNORE, Boxes2D
from mwsis.evaluation.label_quality import ObjectScore, box_columns, object_pairs, true_pairs
from mwsis.report.pictures import GROUND, Colour, draw_image

__all__ = ["ObjectPoints", "draw_object", "draw_sheet", "object_points"]

HIT: Colour = (0, 190, 140)
MISSED: Colour = (240, 160, 20)
TAKEN: Colour = (86, 180, 233)
FALSE: Colour = (255, 90, 180)
OTHER: Colour = (92, 99, 112)
INK: Colour = (235, 238, 243)
LEGEND = (
    (HIT, "hit: labelled and of the object"),
    (MISSED, "missed: of the object only"),
    (TAKEN, "taken: of the object, given to another box"),
    (FALSE, "false: labelled only"),
    (OTHER, "other points"),
)
VIEW = (640, 480)
"""Width and height of the camera's view, pixels; the view from above is as high, and square."""
SURROUNDINGS = 1.7
"""A view is this many times as large as what it is about."""
SMALLEST_CROP = 48
"""Pixels of the recorded image: nothing is enlarged beyond this."""
REACH = (3.0, 20.0)
"""Metres from the object's centre to the edge of the view from above, at least and at most."""
OUTLINE = (0, 2, 6, 4, 0)
"""The corners of a 3D box (`box_corners`) around its footprint."""
GAP, LINE, FONT_SIZE = 16, 30, 20


@dataclass(frozen=True, eq=False)
class ObjectPoints:
    """The points of a frame that decide an object's score, as (K,) int64 indices each.

    Attributes:
        hit: labelled as the object and of it.
        missed: of it, and of no box.
        taken: of it, but labelled as another box; perhaps the same object's in another camera.
        false: labelled only.
    """

    hit: Tensor
    missed: Tensor
    taken: Tensor
    false: Tensor

    def of_object(self) -> Tensor:
        """Return the points that the method should have labelled."""
        return torch.cat([self.hit, self.missed, self.taken])


def object_points(frame: Frame, pairs: Tensor, box: int) -> ObjectPoints:
    """Return what a method hit, missed and made up of one object.

    Args:
        frame: with ground truth.
        pairs: (P, 2) int64, (point, box) pairs that the method labelled.
        box: index of the object's 2D box, counted on over the cameras.
    """
    assert frame.truth is not None
    wanted, labelled, other = torch.zeros(3, len(frame.points), dtype=torch.bool)
    truth, own = true_pairs(frame), pairs[:, 1] == box
    wanted[truth[truth[:, 1] == box, 0]] = True
    labelled[pairs[own, 0]] = True
    labelled &= frame.truth.semantic_labels != IGNORE
    other[pairs[~own, 0]] = True
    lost = wanted & ~labelled
    groups = (wanted & labelled, lost & ~other, lost & other, labelled & ~wanted)
    return ObjectPoints(*(group.nonzero()[:, 0] for group in groups))


def draw_object(frame: Frame, pairs: Tensor, score: ObjectScore) -> Image.Image:
    """Return a camera's view of an object's box and the sweep around the object from above, with the scores above them.

    Args:
        frame: the object's frame, with ground truth.
        pairs: (P, 2) int64, (point, box) pairs that the scored method labelled.
        score: of the object.
    """
    points = object_points(frame, object_pairs(frame, pairs), score.box)
    width, height = VIEW
    picture = Image.new("RGB", (width + height + GAP, height + 2 * LINE), GROUND)
    write = ImageDraw.Draw(picture)
    for line, (words, size) in enumerate(zip(_caption(score), (FONT_SIZE, FONT_SIZE - 3), strict=True)):
        write.text((2, LINE * (line + 0.5)), words, fill=INK, font=ImageFont.load_default(size), anchor="lm")
    picture.paste(_camera_view(frame, points, score), (0, 2 * LINE))
    picture.paste(_view_from_above(frame, points, score.box, height), (width + GAP, 2 * LINE))
    return picture


def draw_sheet(title: str, pictures: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Return pictures of `draw_object` on one sheet, row by row, beneath a title and what the colours mean."""
    cell_width, cell_height = (max((picture.size[axis] for picture in pictures), default=1) for axis in (0, 1))
    rows = math.ceil(len(pictures) / columns)
    width, head = columns * (cell_width + 2 * GAP), 3 * LINE
    sheet = Image.new("RGB", (width, head + rows * (cell_height + 2 * GAP)), GROUND)
    write, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    write.text((GAP, LINE * 0.8), title, fill=INK, font=ImageFont.load_default(FONT_SIZE + 4), anchor="lm")
    left = float(GAP)
    for colour, words in LEGEND:
        write.ellipse((left, LINE * 2 - 7, left + 14, LINE * 2 + 7), fill=colour)
        write.text((left + 22, LINE * 2), words, fill=INK, font=font, anchor="lm")
        left += write.textlength(words, font=font) + 60
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (GAP + column * (cell_width + 2 * GAP), head + row * (cell_height + 2 * GAP)))
    return sheet


def _caption(score: ObjectScore) -> tuple[str, str]:
    tolerant = "" if score.tolerant_iou is None else f" (tolerant {score.tolerant_iou:.2f})"
    return (
        f"{score.class_name}  IoU {score.point_iou:.2f}{tolerant}  precision {score.precision:.2f}  "
        f"recall {score.recall:.2f}",
        f"frame {score.frame_id}, camera {score.camera}, box {score.box}: {score.points} true points at "
        f"{score.range:.1f} m, {score.labelled} labelled",
    )


def _camera_view(frame: Frame, points: ObjectPoints, score: ObjectScore) -> Image.Image:
    """Return the box and its surroundings in the camera's image, with the points of the object."""
    camera = int(box_columns(frame)[0][score.box])
    view = frame.cameras[camera]
    edges = torch.cat([each.labels.boxes for each in frame.cameras])[score.box]
    middle, (box_width, box_height) = (edges[:2] + edges[2:]) / 2, (edges[2:] - edges[:2]).tolist()
    width = max(SURROUNDINGS * box_width, SURROUNDINGS * box_height * VIEW[0] / VIEW[1], SMALLEST_CROP)
    size = torch.tensor([width, width * VIEW[1] / VIEW[0]])
    scale, start = VIEW[0] / width, middle - size / 2
    image = Image.fromarray(decode_image(view.image, f"{frame.frame_id} {view.name}").permute(1, 2, 0).numpy())
    crop = image.transform(
        VIEW, Image.Transform.EXTENT, (*start.tolist(), *(start + size).tolist()), Image.Resampling.BICUBIC
    )
    index, colours = _painted(points)
    row, slot = (frame.pixels.camera_index[index] == camera).nonzero().T
    drawn = draw_image(
        torch.from_numpy(np.array(crop)).permute(2, 0, 1),
        class_names=(score.class_name,),
        boxes=Boxes2D(((edges - start.repeat(2)) * scale)[None], torch.tensor([0]), torch.tensor([False])),
        pixel_uv=(frame.pixels.pixel_uv[index[row], slot] - start) * scale,
        point_values=colours[row],
    )
    return Image.fromarray(drawn.permute(1, 2, 0).numpy())


def _view_from_above(frame: Frame, points: ObjectPoints, box: int, size: int) -> Image.Image:
    """Return the surroundings of the object, turned so that the sensor is below; its true 3D box is white."""
    truth = frame.truth
    assert truth is not None
    xy, (index, colours) = frame.points.xyz[:, :2].double(), _painted(points)
    outlines = box_corners(truth.boxes3d[truth.box3d_ids == box_columns(frame)[2][box]])[:, OUTLINE, :2]
    middle = xy[points.of_object()].median(0).values
    spread = float((torch.cat([xy[index], outlines.reshape(-1, 2)]) - middle).abs().max())
    ground = _TurnedGround(middle, min(max(1.2 * spread, REACH[0]), REACH[1]), size)
    pixels: NDArray[np.uint8] = np.full((size, size, 3), GROUND, dtype=np.uint8)
    ground.stamp(pixels, xy, torch.tensor(OTHER, dtype=torch.uint8).expand(len(xy), 3), 1)
    ground.stamp(pixels, xy[index], colours, 2)
    picture = Image.fromarray(pixels)
    write, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE - 4)
    for outline in outlines:
        write.line(ground.pixel(outline).flatten().tolist(), fill=INK, width=2)
    metres = 1 if ground.reach < 8 else 5
    write.line((GAP, size - GAP, GAP + metres * ground.per_metre, size - GAP), fill=INK, width=3)
    write.text(
        (GAP, size - GAP - 6), f"{metres} m", fill=INK, font=font, anchor="ls", stroke_width=2, stroke_fill=GROUND
    )
    write.text(
        (size - GAP, size - GAP),
        "sensor: this way down",
        fill=INK,
        font=font,
        anchor="rs",
        stroke_width=2,
        stroke_fill=GROUND,
    )
    return picture


def _painted(points: ObjectPoints) -> tuple[Tensor, Tensor]:
    """Return the (K,) indices of the object's points and their (K, 3) uint8 colours, in the order of drawing."""
    groups = ((points.hit, HIT), (points.missed, MISSED), (points.taken, TAKEN), (points.false, FALSE))
    colours = [torch.tensor(colour, dtype=torch.uint8).expand(len(index), 3) for index, colour in groups]
    return torch.cat([index for index, _ in groups]), torch.cat(colours)


class _TurnedGround:
    """A square piece of the ground, seen from above with the direction from the sensor upwards.

    Args:
        middle: (2,) float64, metres, vehicle frame.
        reach: metres from there to the edges.
        size: of the picture, pixels.
    """

    def __init__(self, middle: Tensor, reach: float, size: int) -> None:
        self.middle, self.reach, self.size = middle, reach, size
        self.per_metre = size / (2 * reach)
        away = middle / middle.norm().clamp(min=1e-9)
        self.right_and_down = torch.stack([torch.stack([away[1], -away[0]]), -away])

    def pixel(self, xy: Tensor) -> Tensor:
        """Return (K, 2) columns and rows of (K, 2) places."""
        return (xy - self.middle) @ self.right_and_down.T * self.per_metre + self.size / 2

    def stamp(self, pixels: NDArray[np.uint8], xy: Tensor, colours: Tensor, radius: int) -> None:
        """Paint squares of side 2 radius + 1, in place, the later over the earlier."""
        place = self.pixel(xy).floor().long()
        shown = ((place >= radius) & (place < self.size - radius)).all(1)
        (columns, rows), paint = place[shown].T.numpy(), colours[shown].numpy()
        for down in range(-radius, radius + 1):
            for across in range(-radius, radius + 1):
                pixels[rows + down, columns + across] = paint
