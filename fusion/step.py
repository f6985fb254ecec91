"""One training step, in the order of the paper: teacher, labels, losses. Read this file first::

    camera student   FCOS + projection + colour pairs from 2D boxes; from `start` on also pseudo masks: the teacher's
                     (IPG, matched detections) or such as came with the boxes; of Mask R-CNN losses of its own
    LiDAR student    focal + centre votes on spatial labels (SPG), corrected by the teacher's vote history (PVC) and,
                     on request, by ring segments (RSC)
    cross-modal      LiDAR teacher -> camera student, camera teacher -> LiDAR student on point-pixel pairs (CSCS)

No optimiser, no checkpoint, no configuration file: those are `mwsis.training`. The labels made from boxes come in with
the batch (`spatial_labels.py`), ground truth never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from camera.condinst import MASK_STRIDE
from camera.context import DenseTarget, MaskContext, TeacherView
from camera.copy_paste import CopyPaste, Pasted
from camera.mask_rcnn import MaskRCNN
from camera.segmentor import CondInst
from camera.sources import Learner, MaskSource, OfflineMasks
from fusion.correspondence import PointPixelPairs, point_pixel_pairs
from fusion.distillation import border_certainty, camera_to_lidar, class_maps, lidar_to_camera
from fusion.lidar_depth import unoccluded
from fusion.ring_correction import correct_by_ring_segment
from fusion.segmentor import MultimodalSegmentor
from fusion.vote_history import DEPTH, VoteHistory, correct_labels, votes_from_prob
from lidar.point_head import semantic_loss, vote_loss
from lidar.segmentor import PointOutput
from mwsis.core.batch import Batch
from mwsis.core.distributed import everywhere, gather
from mwsis.core.ema import EMATeacher
from mwsis.core.instances import PointLabels
from mwsis.core.schedule import EMADecay, Ramp

__all__ = ["Method", "PretrainingStep", "WeightedTerm"]


@dataclass(frozen=True)
class WeightedTerm:
    """A camera mask term and its weight over the run."""

    term: Callable[[MaskContext], Tensor]
    schedule: Ramp

    @property
    def needs(self) -> frozenset[str]:
        return self.term.needs  # type: ignore[attr-defined, no-any-return]

    @property
    def needs_target(self) -> bool:
        return "target" in self.needs


@dataclass(frozen=True)
class Method:
    """What a method consists of; `configs/method/*.yaml` in objects.

    Attributes:
        camera_terms: mask terms by name.
        mask_source: makes camera pseudo masks; None = none.
        copy_paste: pastes objects of earlier images while a term learns from them; None = nothing is pasted.
        lidar_to_camera, camera_to_lidar: weight of the distillation over the run; None = off.
        record_votes_from: progress from which the teacher's point votes are stored; None = never.
        correct_votes_from: progress from which agreeing votes override spatial labels.
        votes_agreeing, votes_looked_at: so many of a point's last votes must agree (PVC: 4 of 4).
        correct_segments_of: classes whose labels are made uniform within ring segments (RSC), from the first step.
        hidden_pairs: points that something nearer hides from the camera take part in the distillation (published).
        border_reach: cells by which projected points are off; pairs near a mask's border count less (published: 0).
        masks_per_image: mask samples of one image (CondInst: 64).
        semantic: class loss of the points, with its constants bound.
        vote_weight: of the centre votes (MWSIS section 3.7: 1).
        ema_decay: None = the student is its own teacher.
    """

    camera_terms: dict[str, WeightedTerm]
    mask_source: MaskSource | None = None
    copy_paste: CopyPaste | None = None
    lidar_to_camera: Ramp | None = None
    camera_to_lidar: Ramp | None = None
    hidden_pairs: bool = True
    border_reach: int = 0
    record_votes_from: float | None = None
    correct_votes_from: float = 1.0
    votes_agreeing: int = DEPTH
    votes_looked_at: int = DEPTH
    correct_segments_of: tuple[int, ...] = ()
    masks_per_image: int = 64
    semantic: Callable[..., Tensor] = semantic_loss
    vote_weight: float = 1.0
    ema_decay: EMADecay | None = field(default_factory=EMADecay)


@dataclass
class CameraPass:
    """What the camera branch found in a batch, kept for the distillation.

    Attributes:
        mask_logits: (K, h, w) float32, the student's masks at ``stride``.
        mask_labels, mask_images: (K,) int64, class and image of each mask.
        target: the teacher's masks per box, or None before their start.
        gt_labels, gt_images: (G,) int64, class and image of each box.
    """

    mask_logits: Tensor
    mask_labels: Tensor
    mask_images: Tensor
    target: DenseTarget | None
    gt_labels: Tensor
    gt_images: Tensor


class PretrainingStep(nn.Module):
    """Student, teacher and the losses between them.

    Args:
        student: trained by gradient.
        method: which terms, from when.
        num_classes: C.
        vote_history: the teacher's past opinions on each point; None when the method records none.
    """

    def __init__(
        self, student: MultimodalSegmentor, method: Method, num_classes: int, vote_history: VoteHistory | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = EMATeacher(student) if method.ema_decay is not None else None
        self.method = method
        self.num_classes = num_classes
        self.vote_history = vote_history
        self.mask_source = method.mask_source  # a part of the step, since it may learn
        self.copy_paste = method.copy_paste
        camera = student.camera
        self.learners = [part for part in self.modules() if isinstance(part, Learner)]
        for learner in self.learners:
            learner.begin(num_classes, camera.mask_head.mask_channels if isinstance(camera, CondInst) else 0)

    def losses(self, batch: Batch, progress: float, with_lidar: bool = True) -> dict[str, Tensor]:
        """Return the weighted losses of one batch; their sum is what the student minimises.

        Args:
            batch: frames with 2D boxes and spatial labels.
            progress: share of the run already done, [0, 1).
            with_lidar: train the LiDAR branch too; without, nothing passes between the branches either.

        Returns:
            Scalars by name, connected to the student only. A term is absent before its start.
        """
        losses: dict[str, Tensor] = {}
        view, points = None, None
        # A branch sits out a step in which one process of a distributed run has nothing for it.
        with_lidar = with_lidar and everywhere(len(batch.points.xyz) > 0)
        with_camera = everywhere(len(batch.images) > 0)
        taught = self._teacher_points(batch, progress) if with_lidar else None
        if self.student.camera is not None and with_camera:
            batch, pasted = self._pasted(batch, progress)
            view = self._camera_losses(batch, pasted, progress, losses)
        if self.student.lidar is not None and with_lidar:
            points = self._lidar_losses(batch, taught, progress, losses)
        if view is not None and points is not None:
            self._cross_modal_losses(batch, view, points, taught, progress, losses)
        return losses

    @torch.no_grad()
    def update_teacher(self, progress: float) -> None:
        """Move the teacher towards the student, and what learns from masks; call after the optimiser step."""
        for learner in self.learners:
            learner.after_step()
        if self.teacher is not None and self.method.ema_decay is not None:
            self.teacher.update(self.student, self.method.ema_decay(progress))

    @property
    def teaching_model(self) -> MultimodalSegmentor:
        """The EMA teacher's network, or the student itself when there is none."""
        model = self.student if self.teacher is None else self.teacher.module
        assert isinstance(model, MultimodalSegmentor)
        return model

    def train(self, mode: bool = True) -> PretrainingStep:
        """Switch the student; the teacher stays in evaluation mode (*corrected*: published trains its norms)."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _pasted(self, batch: Batch, progress: float) -> tuple[Batch, Pasted | None]:
        """Return the batch with objects pasted into its images, where its points then show nothing; once asked for."""
        if self.copy_paste is None or not self._pastes_asked(progress):
            return batch, None
        pasted = self.copy_paste.compose(batch.images, progress)
        images, depth = pasted.images, batch.images.depth
        if depth is not None:
            images = replace(images, depth=depth.without(pasted.covered_cells))
        return replace(batch, images=images, image_index=pasted.shows(batch.pixel_uv, batch.image_index)), pasted

    def _camera_losses(
        self, batch: Batch, pasted: Pasted | None, progress: float, losses: dict[str, Tensor]
    ) -> CameraPass | None:
        camera, images = self.student.camera, batch.images
        if isinstance(camera, MaskRCNN):
            assert isinstance(self.mask_source, OfflineMasks)
            given = replace(images.for_student, masks=self.mask_source.of_boxes(images.masks))
            losses.update({f"camera/{name}": value for name, value in camera.losses(given, progress).items()})
            return None
        assert camera is not None
        dense = camera.dense(images.for_student)
        positives = camera.assign(dense, images.labels)
        for name, value in camera.detection_loss(dense, positives).items():
            losses[f"camera/{name}"] = value

        sampled = camera.sample(dense, positives, self.method.masks_per_image)
        teacher = TeacherView(self._teaching_camera, images, sampled)
        masks = camera.decode(dense, sampled)
        exact = None if pasted is None else pasted.target
        context = MaskContext(
            masks.logits, sampled, images, None, teacher, dense.mask_feats, progress, exact, masks.depth
        )
        if self.mask_source is not None and self._masks_asked(progress):
            context = replace(context, target=self.mask_source.propose(context))
        if self.copy_paste is not None and pasted is not None and context.target is not None:
            context = replace(context, target=pasted.without(context.target, context.gt_image))
            self.copy_paste.cut(pasted, context)
        for name, weighted in self.method.camera_terms.items():
            assert f"camera/{name}" not in losses
            weight = weighted.schedule(progress)
            if weight > 0 and not (weighted.needs_target and context.target is None):
                losses[f"camera/{name}"] = weight * weighted.term(context)
        return CameraPass(
            context.mask_logits,
            sampled.class_index,
            sampled.image_index,
            context.target,
            context.gt_labels,
            context.gt_image,
        )

    def _lidar_losses(
        self, batch: Batch, taught: PointOutput | None, progress: float, losses: dict[str, Tensor]
    ) -> PointOutput:
        assert self.student.lidar is not None
        pseudo = self._corrected_labels(batch, progress)
        if taught is not None:
            self._record_votes(batch, taught, progress)
        output: PointOutput = self.student.lidar(batch.points)
        losses["lidar/semantic"] = self.method.semantic(
            output.class_logits, pseudo.semantic_labels, valid=output.in_range, confidence=pseudo.weight
        )
        losses["lidar/vote"] = self.method.vote_weight * vote_loss(
            output.vote_encoded,
            batch.points.xyz,
            pseudo.semantic_labels,
            pseudo.instance_ids,
            batch.points.batch_index,
            valid=output.in_range,
        )
        return output

    def _cross_modal_losses(
        self,
        batch: Batch,
        view: CameraPass,
        points: PointOutput,
        taught: PointOutput | None,
        progress: float,
        losses: dict[str, Tensor],
    ) -> None:
        to_camera = self.method.lidar_to_camera(progress) if self.method.lidar_to_camera and taught else 0.0
        to_lidar = self.method.camera_to_lidar(progress) if self.method.camera_to_lidar and view.target else 0.0
        if not (to_camera or to_lidar):
            return
        pairs = self._pairs(batch)
        shape = (len(batch.images), self.num_classes)
        if to_camera and taught is not None:
            maps, present = class_maps(view.mask_logits.sigmoid(), view.mask_labels, view.mask_images, *shape)
            certain = self._certainty(pairs, maps)
            loss = lidar_to_camera(pairs, maps, present, MASK_STRIDE, taught.class_prob, weight=certain)
            losses["camera/from_lidar"] = to_camera * loss
        if to_lidar and view.target is not None:
            shown = view.target.present
            maps, present = class_maps(view.target.per_gt[shown], view.gt_labels[shown], view.gt_images[shown], *shape)
            certain = self._certainty(pairs, maps)
            loss = camera_to_lidar(pairs, maps, present, MASK_STRIDE, points.class_logits, weight=certain)
            losses["lidar/from_camera"] = to_lidar * loss

    def _pairs(self, batch: Batch) -> PointPixelPairs:
        """Return the points and pixels that may teach each other."""
        pairs = point_pixel_pairs(batch.pixel_uv, batch.image_index)
        if self.method.hidden_pairs:
            return pairs
        assert batch.pixel_depth is not None
        depth = batch.pixel_depth[batch.image_index >= 0]
        height, width = (int(side) for side in batch.images.images.shape[-2:])
        return pairs[unoccluded(pairs, depth, len(batch.images), height, width)]

    def _certainty(self, pairs: PointPixelPairs, maps: Tensor) -> Tensor | None:
        reach = self.method.border_reach
        return border_certainty(pairs, maps.detach(), MASK_STRIDE, reach) if reach else None

    @torch.no_grad()
    def _teacher_points(self, batch: Batch, progress: float) -> PointOutput | None:
        """Return what the LiDAR teacher says about each point, or None while nobody asks."""
        record = self.method.record_votes_from
        asked = record is not None and progress >= record
        asked |= self.method.lidar_to_camera is not None and self.method.lidar_to_camera(progress) > 0
        if self.student.lidar is None or not asked:
            return None
        with self._teaching() as teacher:
            assert teacher.lidar is not None
            output = teacher.lidar(batch.points)
        assert isinstance(output, PointOutput)
        return output

    def _masks_asked(self, progress: float) -> bool:
        """Return whether a term or the LiDAR branch asks for pseudo masks at this point of the run."""
        asked = [term.schedule(progress) > 0 for term in self.method.camera_terms.values() if term.needs_target]
        asked.append(self.method.camera_to_lidar is not None and self.method.camera_to_lidar(progress) > 0)
        return any(asked) or (self.copy_paste is not None and self._pastes_asked(progress))

    def _pastes_asked(self, progress: float) -> bool:
        """Return whether a term learns from pasted objects at this point of the run."""
        return any("pasted" in one.needs and one.schedule(progress) > 0 for one in self.method.camera_terms.values())

    def _corrected_labels(self, batch: Batch, progress: float) -> PointLabels:
        """Return the labels to train on: the batch's, corrected by votes, these corrected by ring segments.

        Either way a point whose class changes leaves its instance, whose centroid is then that of the points that
        stay, and a point that gains a class has no centre to vote for.
        """
        pseudo = batch.pseudo
        if self.vote_history is not None and progress >= self.method.correct_votes_from:
            wanted = self.method.votes_agreeing, self.method.votes_looked_at
            votes = [self.vote_history.agreed(frame, rows, *wanted) for frame, rows, _ in self._frames(batch)]
            pseudo = correct_labels(pseudo, torch.cat(votes).to(pseudo.semantic_labels.device))
        if self.method.correct_segments_of:
            segments, classes = batch.points.ring_segment_id, self.method.correct_segments_of
            pseudo = correct_labels(pseudo, correct_by_ring_segment(pseudo.semantic_labels, segments, classes))
        return pseudo

    def _record_votes(self, batch: Batch, taught: PointOutput, progress: float) -> None:
        record = self.method.record_votes_from
        if self.vote_history is None or record is None or progress < record:
            return
        votes, seen = votes_from_prob(taught.class_prob).to("cpu", torch.int8), taught.in_range.cpu()
        own = [(frame, rows[seen[span]].int(), votes[span][seen[span]]) for frame, rows, span in self._frames(batch)]
        # Every process keeps the votes of all, in the order of one process: a frame's next visit may be anywhere.
        for together in zip(*gather(own), strict=True):
            for frame, rows, voted in together:
                self.vote_history.push(frame, rows.long(), voted.long())

    @staticmethod
    def _frames(batch: Batch) -> Iterator[tuple[int, Tensor, slice]]:
        offsets = batch.points.batch_offsets.tolist()
        point_index = batch.points.point_index.cpu()
        for frame, start, end in zip(batch.frame_index.tolist(), offsets[:-1], offsets[1:], strict=True):
            yield frame, point_index[start:end], slice(start, end)

    @contextmanager
    def _teaching_camera(self) -> Iterator[CondInst]:
        with self._teaching() as teacher:
            assert isinstance(teacher.camera, CondInst)
            yield teacher.camera

    @contextmanager
    def _teaching(self) -> Iterator[MultimodalSegmentor]:
        """Lend the teaching model in evaluation mode."""
        model = self.teaching_model
        model.eval()
        try:
            yield model
        finally:
            self.train(self.training)
