"""Objects cut out of earlier images and pasted into later ones: their masks are exact, whatever the pseudo masks were.

`CopyPaste` keeps the cut-out objects and lays some of them over the images of a step before either network sees them;
`PastedMask` is the loss on those. What lies under them is hidden: boxes shrink or go, and points there teach nothing
(`fusion.step`). Draws are functions of image and progress, and all processes keep all objects, so a resumed run and one
on several processes paste the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from camera.affinity import CELL
from camera.condinst import aligned_bilinear
from camera.context import DenseTarget, MaskContext
from camera.prototypes import SURE_ON
from camera.terms import PseudoMask
from mwsis.core.batch import ImageBatch
from mwsis.core.distributed import gather
from mwsis.core.errors import ConfigError
from mwsis.core.instances import IGNORE, Boxes2D, MaskSet

__all__ = ["CopyPaste", "Pasted", "PastedMask", "Piece", "visible_boxes"]

FIELDS = 6
"""Of an object in the table: first pixel in the store, rows, columns, top, left, class."""
HIDDEN = 0.5
"""An object whose box is covered further is neither trained on nor counted as background."""


@dataclass(frozen=True, eq=False)
class Piece:
    """An object cut out of an image.

    Attributes:
        pixels: (h, w, 4) uint8, RGB and whether the pixel is the object's (1 or 0).
        top, left: where it was, and will be pasted.
        label: class.
        score: in (0, 1], mean of its pseudo mask.
    """

    pixels: Tensor
    top: int
    left: int
    label: int
    score: float


@dataclass(frozen=True, eq=False)
class Pasted:
    """A batch after pasting.

    Attributes:
        images: the batch to train on.
        covered: (I, H, W) bool, pixels that show a pasted object.
        target: exact masks of the pasted objects, rows as of ``labels.objects`` of all images; others are not present.
        keys: I numbers that tell images apart.
    """

    images: ImageBatch
    covered: Tensor
    target: DenseTarget
    keys: list[int]

    @property
    def covered_cells(self) -> Tensor:
        """(I, H/4, W/4) bool, the mask cells that show a pasted object."""
        return self.covered[:, CELL // 2 :: CELL, CELL // 2 :: CELL]

    def without(self, target: DenseTarget, gt_image: Tensor) -> DenseTarget:
        """Return pseudo masks of the other objects, nothing where a pasted one hides them."""
        shown = ~self.covered_cells[gt_image]
        return replace(target, per_gt=target.per_gt * shown, present=target.present & ~self.target.present)

    def shows(self, pixel_uv: Tensor, image_index: Tensor) -> Tensor:
        """Return ``image_index`` (N, S), -1 where the pixel shows a pasted object."""
        height, width = self.covered.shape[1:]
        column = pixel_uv[..., 0].floor().long().clamp(0, width - 1)
        row = pixel_uv[..., 1].floor().long().clamp(0, height - 1)
        hidden = self.covered[image_index.long().clamp(min=0), row, column] if len(self.covered) else image_index >= 0
        return torch.where(hidden, -1, image_index)


def visible_boxes(labels: Boxes2D, covered: Tensor) -> Boxes2D:
    """Return boxes around what pasted objects leave of them.

    A box keeps the rows and columns in which some of its pixels are not covered; with none it goes, and with more than
    half of it covered it becomes an ignore region. Ignore regions stay.

    Args:
        labels: boxes, pixels.
        covered: (H, W) bool.

    Source: SIM, section 3.3, which cuts the object's pseudo mask; the box alone needs no teacher before the images are
    made (*simplified*).
    """
    boxes, ignore, keep = labels.boxes.clone(), labels.ignore.clone(), torch.ones_like(labels.ignore)
    height, width = covered.shape
    for index in (~labels.ignore).nonzero()[:, 0].tolist():
        x1, y1, x2, y2 = boxes[index].tolist()
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:  # beyond the image, where nothing is pasted
            continue
        left, top = min(max(int(x1), 0), width - 1), min(max(int(y1), 0), height - 1)
        right, bottom = min(max(-int(-x2 // 1), left + 1), width), min(max(-int(-y2 // 1), top + 1), height)
        open_ = ~covered[top:bottom, left:right]
        share = float(open_.float().mean())
        if share == 1:
            continue
        keep[index] = share > 0
        ignore[index] = share < HIDDEN
        if share > 0:
            shown = torch.tensor(MaskSet.tight_crop(open_)[0]).to(boxes) + boxes.new_tensor([left, top] * 2)
            boxes[index] = torch.cat([boxes[index, :2].maximum(shown[:2]), boxes[index, 2:].minimum(shown[2:])])
    return Boxes2D(boxes, labels.labels.where(~ignore, IGNORE), ignore)[keep]


class CopyPaste(nn.Module):
    """A memory of cut-out objects, and what pastes them; part of the training step's state.

    Args:
        size: images remembered; the oldest goes first.
        store: pixels remembered in all, 4 bytes each; a full store forgets old images before ``size`` is reached.
        per_image: most objects remembered of an image, best scores first.
        prob: how likely something is pasted into an image.
        share, most: this share of a remembered image's objects is pasted, at least one and at most so many.

    Raises:
        ConfigError: a value out of range.

    Source: SIM (CVPR 2023), section 3.3: 100 images, a quarter, at most 3, drawn by score; probability 0.5 from its
    code. Objects keep size and place.
    """

    pixels: Tensor
    table: Tensor
    scores: Tensor
    place: Tensor

    needs = frozenset({"target"})

    def __init__(
        self,
        size: int = 100,
        store: int = 4_000_000,
        per_image: int = 8,
        prob: float = 0.5,
        share: float = 0.25,
        most: int = 3,
    ) -> None:
        super().__init__()
        if min(size, store, per_image, most) < 1 or not (0 <= prob <= 1 and 0 <= share <= 1):
            raise ConfigError(
                "CopyPaste: expected size, store, per_image and most of at least 1, prob and share in [0, 1]"
            )
        self.prob = prob
        self.share = share
        self.most = most
        self.register_buffer("pixels", torch.zeros(store, 4, dtype=torch.uint8))
        self.register_buffer("table", torch.zeros(size, per_image, FIELDS, dtype=torch.int64))
        self.register_buffer("scores", torch.zeros(size, per_image))
        self.register_buffer("place", torch.zeros(2, dtype=torch.int64))  # next row of the table, next pixel
        self._cut: list[tuple[int, list[Piece]]] = []
        self._cut_at = -1.0

    @torch.no_grad()
    def compose(self, images: ImageBatch, progress: float) -> Pasted:
        """Return the batch with objects of earlier images pasted into some of its images.

        Args:
            images: without given masks.
            progress: share of the run already done.
        """
        keys = images.images.flatten(1).sum(1, dtype=torch.int64).tolist()
        pixels = images.images.clone()
        strong = None if images.strong is None else images.strong.clone()
        covered = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
        labels, targets, present = [], [], []
        for image, key in enumerate(keys):
            pieces = self._drawn(key, progress, images.sizes[image].tolist())
            views = [pixels[image]] + ([] if strong is None else [strong[image]])
            masks = _paint(views, pieces)
            kept = masks.flatten(1).any(1)
            covered[image] = masks.any(0)
            before = visible_boxes(images.labels[image], covered[image])
            pasted = _labels([piece for piece, one in zip(pieces, kept.tolist(), strict=True) if one], masks[kept])
            labels.append(_joined(before, pasted.to(before.boxes.device)))
            cells = masks[kept][:, CELL // 2 :: CELL, CELL // 2 :: CELL].float()
            num_before = len(before.objects)
            targets += [cells.new_zeros(num_before, *cells.shape[1:]), cells]
            present += [torch.arange(num_before + len(cells), device=cells.device) >= num_before]
        per_gt = torch.cat(targets) if targets else pixels.new_zeros(0, 1, 1).float()
        exact = DenseTarget(per_gt, torch.cat(present) if present else per_gt.new_zeros(0).bool())
        return Pasted(replace(images, images=pixels, strong=strong, labels=tuple(labels)), covered, exact, keys)

    def _drawn(self, key: int, progress: float, size: Sequence[int]) -> list[Piece]:
        """Return the objects to paste into an image of (rows, columns)."""
        generator = torch.Generator().manual_seed((key * 1_000_003 + int(progress * 1e9)) % 2**62)
        known = (self.table[:, :, 1] > 0).any(1).nonzero()[:, 0]
        if not len(known) or float(torch.rand(1, generator=generator)) >= self.prob:
            return []
        slot = int(known[int(torch.randint(len(known), (1,), generator=generator))])
        rows, scores = self.table[slot].tolist(), self.scores[slot].cpu()
        weight = torch.tensor([float(one[1] > 0) for one in rows]) * scores
        num_known = int((weight > 0).sum())
        count = min(max(int(self.share * num_known), 1), self.most, num_known)
        picked = torch.multinomial(weight, count, generator=generator).tolist()
        pieces = [self._piece(rows[index], float(scores[index])) for index in picked]
        return [
            one
            for one in pieces
            if one.top + one.pixels.shape[0] <= size[0] and one.left + one.pixels.shape[1] <= size[1]
        ]

    def _piece(self, row: list[int], score: float) -> Piece:
        start, height, width, top, left, label = row
        return Piece(self.pixels[start : start + height * width].view(height, width, 4), top, left, label, score)

    @torch.no_grad()
    def cut(self, pasted: Pasted, ctx: MaskContext) -> None:
        """Cut out the objects of a step that have a pseudo mask, each within its box; they are remembered after it.

        Args:
            pasted: the batch.
            ctx: the step, with pseudo masks of objects that were not pasted.
        """
        assert ctx.target is not None
        target = ctx.target
        if ctx.progress != self._cut_at:  # of a step that was skipped
            self._cut, self._cut_at = [], ctx.progress
        sure = target.per_gt > SURE_ON
        score = (target.per_gt * sure).flatten(1).sum(1) / sure.flatten(1).sum(1).clamp(min=1)
        score = score * target.present
        for image, key in enumerate(pasted.keys):
            rows = ((ctx.gt_image == image) & (score > 0)).nonzero()[:, 0]
            rows = rows[score[rows].argsort(descending=True, stable=True)][: self.table.shape[1]]
            pieces = [
                _cut_out(
                    pasted.images.images[image],
                    target.per_gt[row],
                    ctx.gt_boxes[row],
                    pasted.covered[image],
                    int(ctx.gt_labels[row]),
                    float(score[row]),
                )
                for row in rows
            ]
            self._cut.append((key, [piece for piece in pieces if piece is not None]))

    def begin(self, num_classes: int, channels: int) -> None:
        """Do nothing: the memory of a new run is empty."""

    @torch.no_grad()
    def after_step(self) -> None:
        """Remember what was cut out in the step, in all its parts and processes."""
        if not self._cut:  # on all processes, or on none
            return
        own, self._cut = self._cut, []
        together = [entry for part in gather(own) for entry in part]
        for _, pieces in sorted(together, key=lambda entry: entry[0]):
            self._remember(pieces)

    def _remember(self, pieces: list[Piece]) -> None:
        """Write an image's objects over the oldest ones."""
        room = len(self.pixels)
        while sum(_area(piece) for piece in pieces) > room:
            pieces = pieces[:-1]
        if not pieces:
            return
        slot, start = self.place.tolist()
        end = start + sum(_area(piece) for piece in pieces)
        if end > room:
            start, end = 0, end - start
        first = self.table[:, :, 0]
        last = first + self.table[:, :, 1] * self.table[:, :, 2]
        overwritten = ((self.table[:, :, 1] > 0) & (first < end) & (last > start)).any(1)
        self.table[overwritten] = 0
        self.table[slot] = 0
        self.scores[slot] = 0
        for index, piece in enumerate(pieces):
            height, width = piece.pixels.shape[:2]
            row = (start, height, width, piece.top, piece.left, piece.label)
            self.table[slot, index] = torch.tensor(row, device=self.table.device)
            self.scores[slot, index] = piece.score
            self.pixels[start : start + _area(piece)] = piece.pixels.reshape(-1, 4).to(self.pixels.device)
            start += _area(piece)
        self.place[0], self.place[1] = (slot + 1) % len(self.table), start


class PastedMask(PseudoMask):
    """The mask of a pasted object should be what was pasted, every cell of it."""

    name = "pasted_mask"
    needs: frozenset[str] = frozenset({"pasted"})

    def __call__(self, ctx: MaskContext) -> Tensor:
        """Return cross-entropy plus Dice over pasted objects; zero, connected to the graph, without any."""
        return super().__call__(replace(ctx, target=ctx.pasted))


def _area(piece: Piece) -> int:
    return int(piece.pixels.shape[0] * piece.pixels.shape[1])


def _paint(views: list[Tensor], pieces: list[Piece]) -> Tensor:
    """Lay objects over (3, H, W) views in turn; return what of each can be seen, (P, H, W) bool."""
    masks = torch.zeros(len(pieces), *views[0].shape[1:], dtype=torch.bool, device=views[0].device)
    for index, piece in enumerate(pieces):
        rows = slice(piece.top, piece.top + piece.pixels.shape[0])
        cols = slice(piece.left, piece.left + piece.pixels.shape[1])
        shape = piece.pixels[..., 3].to(masks.device) > 0
        masks[:index, rows, cols] &= ~shape
        masks[index, rows, cols] = shape
        for view in views:
            view[:, rows, cols] = torch.where(
                shape, piece.pixels[..., :3].permute(2, 0, 1).to(view), view[:, rows, cols]
            )
    return masks


def _labels(pieces: list[Piece], masks: Tensor) -> Boxes2D:
    """Return the tight boxes of non-empty (P, H, W) masks, with their classes."""
    boxes = [MaskSet.tight_crop(mask)[0] for mask in masks]
    labels = torch.tensor([piece.label for piece in pieces], dtype=torch.int64)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Boxes2D(corners, labels, torch.zeros(len(pieces), dtype=torch.bool))


def _joined(first: Boxes2D, second: Boxes2D) -> Boxes2D:
    pairs = ((first.boxes, second.boxes), (first.labels, second.labels), (first.ignore, second.ignore))
    return Boxes2D(*(torch.cat(pair) for pair in pairs))


def _cut_out(image: Tensor, prob: Tensor, box: Tensor, covered: Tensor, label: int, score: float) -> Piece | None:
    """Return an object within its box, None where no pixel of it shows."""
    height, width = covered.shape
    x1, y1, x2, y2 = box.tolist()
    rows = slice(max(int(y1), 0), min(-int(-y2 // 1), height))
    cols = slice(max(int(x1), 0), min(-int(-x2 // 1), width))
    mask = (aligned_bilinear(prob[None, None], CELL)[0, 0] > SURE_ON)[rows, cols] & ~covered[rows, cols]
    (left, top, right, bottom), shape = MaskSet.tight_crop(mask)
    if not len(shape):
        return None
    colours = image[:, rows, cols][:, top:bottom, left:right]
    pixels = torch.cat([colours, shape[None].byte()]).permute(1, 2, 0)
    return Piece(pixels.contiguous().cpu(), rows.start + top, cols.start + left, label, score)
