"""Pictures of a report: camera images with boxes, masks and projected points; bird's-eye views with instances.

Colours mean the same thing everywhere: in camera pictures a class, in bird's-eye views one object. All are told apart
with red-green colour blindness, and all stand out on a dark ground. What is deliberately not here: which frames to
show and what the captions say. Next: `html.py`, which puts these on a page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mwsis.core.frame import ImageTruth
from mwsis.core.instances import IGNORE, Boxes2D, Detections, MaskSet, PointInstances, PointLabels

__all__ = [
    "BACKGROUND_COLOUR",
    "CLASS_COLOURS",
    "IGNORE_COLOUR",
    "INSTANCE_COLOURS",
    "WIDE_ASPECT",
    "Colour",
    "align_instances",
    "class_colour",
    "depth_colours",
    "draw_birds_eye",
    "draw_image",
    "instance_colours",
]

Colour = tuple[int, int, int]
"""Red, green, blue in 0..255."""
Pixels = NDArray[np.uint8]

CLASS_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),
    (240, 160, 20),
    (220, 84, 158),
    (0, 190, 140),
    (240, 228, 66),
    (230, 90, 40),
    (150, 130, 255),
)
"""By class index. The palette of Okabe and Ito (2008), some of its colours shifted to stand out on photographs."""
INSTANCE_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),
    (240, 160, 20),
    (255, 118, 197),
    (22, 255, 153),
    (210, 44, 233),
    (255, 226, 37),
    (250, 38, 43),
    (231, 195, 255),
    (21, 153, 113),
    (187, 251, 239),
    (161, 107, 176),
    (135, 196, 131),
)
"""By instance id modulo their number. Chosen by largest smallest OKLab distance, also as seen by protanopes and
deuteranopes (simulation of Machado et al. 2009)."""
BACKGROUND_COLOUR: Colour = (138, 145, 156)
IGNORE_COLOUR: Colour = (104, 92, 120)
GROUND: Colour = (17, 21, 28)
"""Bird's-eye views are drawn on this near-black, on light and dark pages alike."""
DEPTH_ANCHORS = ((253, 231, 37), (122, 209, 81), (34, 168, 132), (42, 120, 142), (65, 68, 135), (68, 1, 84))
"""Near to far; six samples of matplotlib's viridis, reversed."""
FILL = 0.42
"""Opacity of a mask's inside; its outline is opaque."""
SHADES = (0.0, 0.45, -0.4)
"""Insides of neighbours in a list of masks: the class colour, mixed with white, mixed with black."""
RING_LABEL = 0.67
"""Where a distance ring carries its number: this share of its radius to the right, off the road."""
SQUARE = ((0, 0), (0, 1), (1, 0), (1, 1))
DISC = tuple((down, across) for down in range(-1, 2) for across in range(-1, 2))
LARGE_DISC = tuple((down, across) for down in range(-2, 3) for across in range(-2, 3) if down**2 + across**2 < 5.5)
"""Shapes that points are painted with, as (rows down, columns right)."""
NARROWEST = 0.55
"""A bird's-eye view is at least this many times as wide as it is long."""
NAMED_SIZE = 2.6
"""A name is written at objects whose box is as large as a square of this many lines of text; smaller ones would vanish
beneath it."""
WIDE_ASPECT = 2.4
"""A camera picture wider than this many heights gets a row of the page for itself."""


def class_colour(label: int) -> Colour:
    """Return the colour of a class, of `BACKGROUND` or of `IGNORE`."""
    if label >= 0:
        return CLASS_COLOURS[label % len(CLASS_COLOURS)]
    return IGNORE_COLOUR if label == IGNORE else BACKGROUND_COLOUR


def instance_colours(instance_ids: Tensor) -> Pixels:
    """Return (N, 3) uint8 colours of (N,) int64 instance ids: the same id always the same, -1 the background's."""
    table = np.array([*INSTANCE_COLOURS, BACKGROUND_COLOUR], dtype=np.uint8)
    ids = instance_ids.cpu().numpy()
    return table[np.where(ids >= 0, ids % len(INSTANCE_COLOURS), len(INSTANCE_COLOURS))]


def depth_colours(depth: Tensor, near: float = 3.0, far: float = 60.0) -> Pixels:
    """Return (N, 3) uint8 colours of (N,) depths in metres, yellow near to violet far, evenly in log depth."""
    position = (np.log(np.clip(depth.cpu().numpy().astype(np.float64), near, far)) - np.log(near)) / np.log(far / near)
    anchors = np.array(DEPTH_ANCHORS, dtype=np.float64)
    grid = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(position, grid, anchors[:, channel]) for channel in range(3)], 1).astype(np.uint8)


def align_instances(reference: Tensor, instance_ids: Tensor) -> Tensor:
    """Rename instances so that each takes the id of the reference instance it shares most points with.

    Pictures of ground truth, pseudo labels and predictions then show one object in one colour. Each reference id is
    given once, to the largest overlap first; instances without a partner get ids above all reference ids.

    Args:
        reference: (N,) int64, -1 none.
        instance_ids: (N,) int64, -1 none.

    Returns:
        (N,) int64, the instances of ``instance_ids`` renamed one to one, -1 kept.
    """
    aligned = torch.full_like(instance_ids, -1)
    inside = instance_ids >= 0
    both = inside & (reference >= 0)
    pairs, counts = torch.unique(torch.stack([reference[both], instance_ids[both]]), dim=1, return_counts=True)
    renamed: dict[int, int] = {}
    taken: set[int] = set()
    for index in counts.argsort(descending=True, stable=True).tolist():
        wanted, own = pairs[:, index].tolist()
        if own not in renamed and wanted not in taken:
            renamed[own] = wanted
            taken.add(wanted)
    own_ids, position = torch.unique(instance_ids[inside], return_inverse=True)
    fresh = iter(range(int(reference.max()) + 1 if len(reference) else 0, 2**62))
    names = [renamed[own] if own in renamed else next(fresh) for own in own_ids.tolist()]
    aligned[inside] = torch.tensor(names, dtype=torch.int64, device=instance_ids.device)[position]
    return aligned


def draw_image(
    image: Tensor,
    *,
    class_names: Sequence[str],
    boxes: Boxes2D | None = None,
    detections: Detections | None = None,
    truth: ImageTruth | None = None,
    pixel_uv: Tensor | None = None,
    point_values: Tensor | None = None,
    min_score: float = 0.3,
) -> Tensor:
    """Return a camera image with every given layer drawn on it: masks first, then points, boxes and names.

    Args:
        image: (3, H, W) uint8 RGB.
        class_names: names by class index, written next to each object.
        boxes: 2D boxes, pixels of ``image``; ignore regions are drawn grey and dashed.
        detections: predicted masks, boxes and scores on ``image``; those below ``min_score`` are left out.
        truth: ground-truth masks on ``image``.
        pixel_uv: (P, 2) float32, pixels of projected points, u = column, v = row, centres at +0.5.
        point_values: what colours the points: (P,) floating point is a depth in metres, (P,) int64 a class,
            `BACKGROUND` or `IGNORE`, (P, 3) uint8 the colours themselves, the later drawn over the earlier.
        min_score: in [0, 1].

    Returns:
        (3, H', W') uint8. Images narrower than 640 pixels are drawn at twice their size and those wider than 1280 at
        half, so that names stay readable.
    """
    canvas = _Canvas(image, dim=pixel_uv is not None)
    if truth is not None:
        _draw_truth(canvas, truth, class_names)
    if detections is not None:
        _draw_detections(canvas, detections, class_names, min_score)
    if pixel_uv is not None:
        assert point_values is not None, "point_values say what colours the points"
        canvas.points(pixel_uv, point_values)
    if boxes is not None:
        _draw_boxes(canvas, boxes, class_names)
    return canvas.finish()


def _draw_boxes(canvas: _Canvas, boxes: Boxes2D, class_names: Sequence[str]) -> None:
    for box in boxes[boxes.ignore].boxes.tolist():
        canvas.dashed_box(box)
    labels = boxes.objects.labels.tolist()
    for box, label in zip(boxes.objects.boxes.tolist(), labels, strict=True):
        canvas.box(box, class_colour(label), 2)
    for box, label in zip(boxes.objects.boxes.tolist(), labels, strict=True):
        canvas.name(box, _class_name(class_names, label), class_colour(label))


def _draw_truth(canvas: _Canvas, truth: ImageTruth, class_names: Sequence[str]) -> None:
    ignored = truth.labels.ignore.tolist()
    labels = [IGNORE if ignore else label for label, ignore in zip(truth.labels.labels.tolist(), ignored, strict=True)]
    canvas.masks(truth.masks, [class_colour(label) for label in labels])
    for box, label in zip(truth.labels.boxes.tolist(), labels, strict=True):
        if label >= 0:
            canvas.name(box, _class_name(class_names, label), class_colour(label))


def _draw_detections(canvas: _Canvas, detections: Detections, class_names: Sequence[str], min_score: float) -> None:
    keep = detections.scores >= min_score
    boxes, labels = detections.boxes[keep].tolist(), detections.labels[keep].tolist()
    canvas.masks(detections.masks[keep.cpu()], [class_colour(label) for label in labels])
    for box, label in zip(boxes, labels, strict=True):
        canvas.box(box, class_colour(label), 1)
    for box, label, score in zip(boxes, labels, detections.scores[keep].tolist(), strict=True):
        canvas.name(box, f"{_class_name(class_names, label)} {score:.2f}", class_colour(label))


def _class_name(class_names: Sequence[str], label: int) -> str:
    return class_names[label] if 0 <= label < len(class_names) else f"class {label}"


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


class _Canvas:
    """A camera image at display size; coordinates given in pixels of the recorded image."""

    def __init__(self, image: Tensor, dim: bool) -> None:
        pixels = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0))
        height, width = pixels.shape[:2]
        self.scale = 2.0 if width < 640 else 0.5 if width > 1280 else 1.0
        self.size = (round(width * self.scale), round(height * self.scale))
        picture = Image.fromarray(pixels)
        if self.scale != 1:
            picture = picture.resize(self.size, Image.Resampling.BICUBIC)
        if dim:  # half the colour and two thirds of the light, so that coloured points stand out
            picture = Image.blend(picture, picture.convert("L").convert("RGB"), 0.6).point(lambda level: level * 0.66)
        self.picture = picture
        self.draw = ImageDraw.Draw(self.picture)
        self.font_size = 14 if width > WIDE_ASPECT * height else round(self.size[0] / 46)
        self.names: list[tuple[float, float, float, float]] = []

    def masks(self, masks: MaskSet, colours: Sequence[Colour]) -> None:
        """Fill masks and draw their outlines, the largest first so that small ones stay on top."""
        pixels = np.array(self.picture)
        for index in masks.areas().argsort(descending=True, stable=True).tolist():
            self._mask(pixels, masks.crop(index).numpy(), masks.crop_boxes[index].tolist(), colours[index], index)
        self._replace(pixels)

    def _mask(self, pixels: Pixels, crop: NDArray[np.bool_], crop_box: list[int], colour: Colour, index: int) -> None:
        if not crop.any():
            return
        border = 3  # room for the outline, recorded pixels
        padded = np.pad(crop, border)
        left, top = (round((edge - border) * self.scale) for edge in crop_box[:2])
        soft = Image.fromarray(padded.astype(np.uint8) * 255)
        shape = (max(1, round(soft.width * self.scale)), max(1, round(soft.height * self.scale)))
        inside = np.asarray(soft.resize(shape, Image.Resampling.BILINEAR)) >= 128
        rows = slice(max(0, -top), min(inside.shape[0], self.size[1] - top))
        cols = slice(max(0, -left), min(inside.shape[1], self.size[0] - left))
        core = _shrink(_shrink(inside))
        halo = (_grow(inside) & ~inside)[rows, cols]
        view = pixels[top + rows.start : top + rows.stop, left + cols.start : left + cols.stop]
        paint = np.array(colour, dtype=np.float32)
        fill, outline = core[rows, cols], (inside & ~core)[rows, cols]
        shade = SHADES[index % len(SHADES)]
        inner = paint + (255 - paint) * shade if shade > 0 else paint * (1 + shade)
        view[fill] = (view[fill] * (1 - FILL) + inner * FILL).astype(np.uint8)
        view[outline] = paint.astype(np.uint8)
        view[halo] = (view[halo] * 0.35).astype(np.uint8)

    def points(self, pixel_uv: Tensor, values: Tensor) -> None:
        """Draw points as small discs: the far ones first, background below objects."""
        if values.ndim == 2:
            colours, order, strong = values.numpy(), torch.arange(len(values)), np.ones(len(values), dtype=bool)
        elif values.is_floating_point():
            colours, order = depth_colours(values), (-values).argsort(stable=True)
            strong = np.ones(len(values), dtype=bool)
        else:
            present, position = np.unique(values.cpu().numpy(), return_inverse=True)
            colours = np.array([class_colour(int(label)) for label in present], dtype=np.uint8).reshape(-1, 3)[position]
            order = (values >= 0).int().argsort(stable=True)
            strong = (values >= 0).cpu().numpy()
        uv = np.floor(pixel_uv.cpu().numpy() * self.scale).astype(np.int64)
        pixels, order_np = np.array(self.picture), order.cpu().numpy()
        for chosen, shape in ((order_np[~strong[order_np]], SQUARE), (order_np[strong[order_np]], LARGE_DISC)):
            _stamp(pixels, uv[chosen, 1], uv[chosen, 0], colours[chosen], shape)
        self._replace(pixels)

    def box(self, box: Sequence[float], colour: Colour, thickness: int) -> None:
        x1, y1, x2, y2 = (edge * self.scale for edge in box)
        if thickness > 1:
            self.draw.rectangle((x1 - 1, y1 - 1, x2, y2), outline=(16, 20, 26), width=thickness + 2)
        self.draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=thickness)

    def dashed_box(self, box: Sequence[float]) -> None:
        x1, y1, x2, y2 = (round(edge * self.scale) for edge in box)
        for colour, shift in (((16, 20, 26), 1), ((205, 208, 214), 0)):
            for x in range(x1, x2, 9):
                for y in (y1, y2 - 1):
                    self.draw.line((x, y + shift, min(x + 5, x2), y + shift), fill=colour)
            for y in range(y1, y2, 9):
                for x in (x1, x2 - 1):
                    self.draw.line((x + shift, y, x + shift, min(y + 5, y2)), fill=colour)

    def name(self, box: Sequence[float], text: str, colour: Colour) -> None:
        """Write a name at the first free place: above the box, below it, inside it; nowhere if none is free."""
        x1, y1, x2, y2 = (edge * self.scale for edge in box)
        if (x2 - x1) * (y2 - y1) < (NAMED_SIZE * self.font_size) ** 2:
            return
        font, pad = _font(self.font_size), 3
        width = self.draw.textlength(text, font=font) + 2 * pad + 4
        height = self.font_size + 4
        for x, y in ((x1, y1 - height - 1), (x2 - width, y1 - height - 1), (x1, y2 + 1), (x1 + 2, y1 + 2)):
            x = min(max(x, 0), self.size[0] - width)
            place = (x, y, x + width, y + height)
            if y < 0 or place[3] > self.size[1] or any(_overlap(place, other) for other in self.names):
                continue
            self.names.append(place)
            self.draw.rectangle(place, fill=(16, 20, 26))
            self.draw.rectangle((x, y, x + 3, y + height), fill=colour)
            self.draw.text((x + pad + 4, y + height / 2), text, fill=(255, 255, 255), font=font, anchor="lm")
            return

    def finish(self) -> Tensor:
        return _to_tensor(self.picture)

    def _replace(self, pixels: Pixels) -> None:
        self.picture = Image.fromarray(pixels)
        self.draw = ImageDraw.Draw(self.picture)


def draw_birds_eye(
    xyz: Tensor,
    labels: PointLabels | PointInstances,
    point_cloud_range: Sequence[float],
    *,
    class_names: Sequence[str],
    boxes3d: Tensor | None = None,
    title: str = "",
    size: int = 900,
) -> Tensor:
    """Return a sweep from above, the vehicle's front upwards, each instance in its own colour.

    The first letter of its class stands next to each instance; rings mark the distance from the vehicle.

    Args:
        xyz: (N, 3) float32, metres, vehicle frame.
        labels: the instances; `align_instances` first makes colours agree between pictures of one frame.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres; what is drawn, less the far left and right where there are
            next to no points (the same for all pictures of one sweep).
        class_names: names by class index.
        boxes3d: (M, 7) float32, centre xyz, length, width, height (metres), yaw (rad, about +z); thin white outlines
            with a line towards the front.
        title: written in the upper left corner.
        size: longer side of the picture, pixels.

    Returns:
        (3, H, W) uint8 on a dark ground.
    """
    xyz = xyz.cpu()
    shown_range = _without_empty_sides(xyz, point_cloud_range)
    view = _GroundView(shown_range, size)
    ids, classes = _instances_and_classes(labels)
    inside = _inside(xyz, shown_range)
    pixels = view.paper()
    view.scatter(pixels, xyz[inside], ids[inside], classes[inside])
    picture = Image.fromarray(pixels)
    if boxes3d is not None:
        view.outlines(picture, boxes3d.cpu())
    num_instances = view.letters(picture, xyz[inside], ids[inside], classes[inside], class_names)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((12, 10), title, fill=(235, 238, 243), font=_font(view.font_size))
    counted = f"{num_instances} instance" + ("" if num_instances == 1 else "s")
    draw.text((12, view.rows - 12), counted, fill=(200, 206, 215), font=_font(view.font_size), anchor="ls")
    return _to_tensor(picture)


def _inside(xyz: Tensor, point_cloud_range: Sequence[float]) -> Tensor:
    low, high = torch.tensor(point_cloud_range[:3]), torch.tensor(point_cloud_range[3:])
    return ((xyz >= low) & (xyz < high)).all(1)


def _without_empty_sides(xyz: Tensor, point_cloud_range: Sequence[float]) -> tuple[float, ...]:
    """Return the range without the left and right ends that hold 1/200 of the points, but not too narrow."""
    x0, y0, z0, x1, y1, z1 = (float(edge) for edge in point_cloud_range)
    across = xyz[_inside(xyz, point_cloud_range), 1].double().numpy()
    if not len(across):
        return x0, y0, z0, x1, y1, z1
    right, left = np.quantile(across, (0.005, 0.995))
    missing = max(0.0, NARROWEST * (x1 - x0) - float(left - right)) / 2
    return x0, max(y0, float(right) - missing - 1.0), z0, x1, min(y1, float(left) + missing + 1.0), z1


def _instances_and_classes(labels: PointLabels | PointInstances) -> tuple[Tensor, Tensor]:
    ids, classes = labels.instance_ids.cpu(), labels.semantic_labels.cpu()
    if isinstance(labels, PointInstances) and len(labels.labels):
        classes = torch.where(ids >= 0, labels.labels.cpu()[ids.clamp(0, len(labels.labels) - 1)], classes)
    return ids, classes


class _GroundView:
    """Metres of the vehicle frame to pixels of a picture with x up and y to the left."""

    def __init__(self, point_cloud_range: Sequence[float], size: int) -> None:
        self.x0, self.y0, _, self.x1, self.y1, _ = point_cloud_range
        self.per_metre = size / max(self.x1 - self.x0, self.y1 - self.y0)
        self.rows = round((self.x1 - self.x0) * self.per_metre)
        self.cols = round((self.y1 - self.y0) * self.per_metre)
        self.font_size = max(12, round(self.cols / 28))

    def pixel(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return (self.x1 - x) * self.per_metre, (self.y1 - y) * self.per_metre

    def paper(self) -> Pixels:
        """The ground with distance rings and the vehicle, drawn at twice the size and halved for smooth lines."""
        picture = Image.new("RGB", (self.cols * 2, self.rows * 2), GROUND)
        draw = ImageDraw.Draw(picture)
        ahead, aside = self.x1 * self.per_metre * 2, self.y1 * self.per_metre * 2
        reach = max(abs(self.x0), abs(self.x1), abs(self.y0), abs(self.y1))
        step = next(step for step in (5, 10, 20, 50, 100, 200, 500, 1000) if reach / step <= 5.01 or step == 1000)
        right = -self.y0 * self.per_metre * 2 - self.font_size * 3
        for distance in range(step, math.ceil(reach) + 1, step):
            radius = distance * self.per_metre * 2
            circle = (aside - radius, ahead - radius, aside + radius, ahead + radius)
            draw.ellipse(circle, outline=(52, 61, 75), width=2)
            shift = min(radius * RING_LABEL, max(right, 0.0))
            place = (aside + shift, ahead - math.sqrt(radius**2 - shift**2))
            draw.text(place, f"{distance} m", fill=(150, 159, 174), font=_font(2 * self.font_size), anchor="mm")
        nose = [(aside, ahead - 22), (aside - 14, ahead + 18), (aside, ahead + 9), (aside + 14, ahead + 18)]
        draw.polygon(nose, fill=(235, 238, 243))
        return np.array(picture.reduce(2))

    def scatter(self, pixels: Pixels, xyz: Tensor, ids: Tensor, classes: Tensor) -> None:
        """Paint points: ground by how many fall on a pixel, ignored ones dim, instances last and larger."""
        rows, cols = (np.floor(axis).astype(np.int64) for axis in self.pixel(*xyz[:, :2].double().numpy().T))
        rows, cols = rows.clip(0, self.rows - 1), cols.clip(0, self.cols - 1)
        objects = (ids >= 0).numpy()
        loose = ~objects
        half = ((self.rows + 1) // 2, (self.cols + 1) // 2)
        hits = np.bincount((rows[loose] // 2) * half[1] + cols[loose] // 2, minlength=half[0] * half[1])
        hits = hits.reshape(half).repeat(2, 0).repeat(2, 1)[: self.rows, : self.cols]
        light = 0.5 + 0.5 * (1 - np.exp(-hits[hits > 0, None] / 3.0))
        pixels[hits > 0] = (light * np.array(BACKGROUND_COLOUR)).astype(np.uint8)
        ignored = loose & (classes == IGNORE).numpy()
        _stamp(pixels, rows[ignored], cols[ignored], np.full((len(rows), 3), IGNORE_COLOUR, np.uint8)[ignored], SQUARE)
        stuff = loose & (classes >= 0).numpy()
        class_table = np.array(CLASS_COLOURS, dtype=np.uint8)
        stuff_colours = class_table[classes.numpy()[stuff] % len(CLASS_COLOURS)]
        _stamp(pixels, rows[stuff], cols[stuff], stuff_colours, SQUARE)
        _stamp(pixels, rows[objects], cols[objects], instance_colours(ids[objects]), DISC)

    def outlines(self, picture: Image.Image, boxes3d: Tensor) -> None:
        """Outline boxes in white, with a line from the centre to the front."""
        layer = Image.new("L", (self.cols * 2, self.rows * 2), 0)
        draw = ImageDraw.Draw(layer)
        for x, y, _, length, width, _, yaw in boxes3d.double().tolist():
            corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1], [1, 1], [0, 0], [1, 0]]) * [length / 2, width / 2]
            cos, sin = np.cos(yaw), np.sin(yaw)
            rows, cols = self.pixel(
                x + corners[:, 0] * cos - corners[:, 1] * sin, y + corners[:, 0] * sin + corners[:, 1] * cos
            )
            path = [(col * 2, row * 2) for row, col in zip(rows.tolist(), cols.tolist(), strict=True)]
            draw.line(path[:5], fill=205, width=2, joint="curve")
            draw.line(path[5:], fill=205, width=2)
        picture.paste((255, 255, 255), mask=layer.reduce(2))

    def letters(
        self, picture: Image.Image, xyz: Tensor, ids: Tensor, classes: Tensor, class_names: Sequence[str]
    ) -> int:
        """Write the first letter of its class beside each instance, where there is room; return how many there are."""
        draw, font = ImageDraw.Draw(picture), _font(self.font_size)
        taken: list[tuple[float, float, float, float]] = []
        member = ids >= 0
        present, position, sizes = np.unique(ids[member].numpy(), return_inverse=True, return_counts=True)
        points, labels = xyz[member].double().numpy(), classes[member].numpy()
        for index in np.argsort(-sizes, kind="stable").tolist():
            own = position == index
            row, col = self.pixel(points[own, 0].mean(), points[own, 1].min())
            place = (float(col) + 5, float(row) - self.font_size / 2)
            extent = (*place, place[0] + self.font_size * 0.7, place[1] + self.font_size * 0.9)
            if any(_overlap(extent, other) for other in taken):
                continue
            taken.append(extent)
            colour = INSTANCE_COLOURS[int(present[index]) % len(INSTANCE_COLOURS)]
            letter = _class_name(class_names, int(np.bincount(labels[own].clip(0)).argmax()))[:1]
            draw.text(place, letter, fill=colour, font=font, anchor="la", stroke_width=2, stroke_fill=GROUND)
        return len(present)


def _stamp(
    pixels: Pixels, rows: NDArray[np.int64], cols: NDArray[np.int64], colours: Pixels, shape: Sequence[tuple[int, int]]
) -> None:
    """Paint a small shape at every point, in place, the later over the earlier; what leaves the picture is cut off."""
    for down, across in shape:
        row, col = rows + down, cols + across
        kept = (row >= 0) & (row < pixels.shape[0]) & (col >= 0) & (col < pixels.shape[1])
        pixels[row[kept], col[kept]] = colours[kept]


def _shrink(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return ~_grow(~mask)


def _grow(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
