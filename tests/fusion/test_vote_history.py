"""The vote history: equal to stored probabilities, and exact after a kill at any moment."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from fusion.vote_history import DEPTH, VoteHistory, correct_labels, votes_from_prob
from mwsis.core.errors import ConfigError, DataError
from mwsis.core.instances import BACKGROUND, IGNORE, PointLabels
from tests.reference.vote_history import ProbabilityHistory

SIZES = [30, 0, 12]
MAJORITIES = [(at_least, of) for of in range(1, DEPTH + 1) for at_least in range(of // 2 + 1, of + 1)]
UNSEEN = -9


def everything(history: VoteHistory) -> list[list[int]]:
    return [history.agreed(frame, torch.arange(size)).tolist() for frame, size in enumerate(SIZES)]


def visit(history: VoteHistory, step: int) -> None:
    """Push votes that depend only on the step; mostly the same class, so that unanimity happens."""
    generator = torch.Generator().manual_seed(step)
    frame = (0, 2)[step % 2]
    index = torch.randperm(SIZES[frame], generator=generator)[: SIZES[frame] - 2]
    votes = torch.where(torch.rand(len(index), generator=generator) < 0.1, IGNORE, index % 3 * 2 - 2)
    history.push(frame, index, votes)


def through_disk(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save({"votes": state}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["votes"]


@pytest.mark.parametrize("seed", range(3))
def test_equals_stored_probabilities(tmp_path, seed):
    rng = np.random.default_rng(seed)
    history, twin = VoteHistory(tmp_path / "votes", [50, 40], 3), ProbabilityHistory(40, 3)
    leaning = rng.integers(0, 4, 40)
    for _ in range(7):
        index = rng.permutation(40)[: rng.integers(20, 41)]
        prob = rng.random((len(index), 3)) * 0.45
        sure = leaning[index] < 3
        prob[sure, leaning[index][sure]] = rng.uniform(0.5, 1, sure.sum())
        history.push(1, torch.from_numpy(index), votes_from_prob(torch.from_numpy(prob)))
        twin.push(index, prob)
        for wanted in MAJORITIES:
            assert history.agreed(1, torch.arange(40), *wanted).tolist() == twin.agreed(*wanted).tolist()
        assert history.agreed(1, torch.arange(40)).tolist() == twin.agreed(4, 4).tolist()
    assert {BACKGROUND, IGNORE, 0, 1, 2} == set(twin.agreed(3, 4).tolist())
    assert twin.agreed(3, 4).tolist() != twin.agreed(4, 4).tolist()
    assert set(history.agreed(0, torch.arange(50), 1, 1).tolist()) == {IGNORE}


def test_every_history_of_two_classes(tmp_path):
    """Unobserved, background, no vote, class 0, class 1 at each of four visits: 5 ** 4 points, all majorities."""
    said = torch.cartesian_prod(*[torch.tensor([UNSEEN, BACKGROUND, IGNORE, 0, 1])] * 4)
    history = VoteHistory(tmp_path / "votes", [len(said)], 2)
    for visit_votes in said.T:
        seen = (visit_votes != UNSEEN).nonzero()[:, 0]
        history.push(0, seen, visit_votes[seen])
    for at_least, of in MAJORITIES:
        agreed = history.agreed(0, torch.arange(len(said)), at_least, of).tolist()
        for votes, found in zip(said.tolist(), agreed, strict=True):
            newest = [vote for vote in votes if vote != UNSEEN][::-1][:of]
            winners = [vote for vote in (BACKGROUND, 0, 1) if newest.count(vote) >= at_least]
            assert [found] == (winners or [IGNORE]), (votes, at_least, of)


@pytest.mark.parametrize(("at_least", "of"), [(0, 1), (1, 2), (2, 4), (4, 3), (3, 5), (5, 5)])
def test_no_majority_is_refused(tmp_path, at_least, of):
    with pytest.raises(AssertionError):
        VoteHistory(tmp_path / "votes", SIZES, 3).agreed(0, torch.arange(30), at_least, of)


def test_thresholds():
    prob = torch.tensor([[0.39, 0.1], [0.4, 0.1], [0.6, 0.2], [0.2, 0.61]])
    assert votes_from_prob(prob).tolist() == [BACKGROUND, IGNORE, IGNORE, 1]


@pytest.mark.parametrize("kill", ["before commit", "during commit", "after commit", "later", "after an older resume"])
def test_killed_run_resumes_with_exactly_its_votes(tmp_path, kill):
    uninterrupted = VoteHistory(tmp_path / "whole", SIZES, 3)
    for step in range(30):
        visit(uninterrupted, step)

    path = tmp_path / "votes"
    history = VoteHistory(path, SIZES, 3)
    for step in range(10):
        visit(history, step)
    history.commit()  # an earlier checkpoint
    for step in range(10, 17):
        visit(history, step)
    checkpoint = through_disk(history.state_dict())
    if kill == "during commit":
        history._header["num_pushes"] = history._num_pushes
        history._codes[:20] = history._pending[0][:20].numpy().view(np.uint16)
    elif kill != "before commit":
        history.commit()
    if kill in ("later", "after an older resume"):
        for step in range(17, 23):
            visit(history, step)
    del history

    if kill == "after an older resume":  # resumed, killed again before its next checkpoint
        again = VoteHistory(path, SIZES, 3)
        again.load_state_dict(checkpoint)
        visit(again, 17)
    resumed = VoteHistory(path, SIZES, 3)
    resumed.load_state_dict(checkpoint)
    for step in range(17, 30):
        visit(resumed, step)
    assert everything(resumed) == everything(uninterrupted)
    resumed.commit()
    assert everything(VoteHistory(path, SIZES, 3)) == everything(uninterrupted)
    assert any(vote != IGNORE for frame in everything(resumed) for vote in frame)


def test_checkpoint_that_does_not_belong_to_the_file_is_refused(tmp_path):
    history = VoteHistory(tmp_path / "votes", SIZES, 3)
    visit(history, 0)
    old = history.state_dict()
    history.commit()
    for step in (1, 2):
        visit(history, step)
    history.commit()
    with pytest.raises(DataError, match=r"votes: expected the vote history of update 0 or 1 .*got that of update 3"):
        VoteHistory(tmp_path / "votes", SIZES, 3).load_state_dict(old)


def test_new_training_does_not_continue_old_votes(tmp_path):
    first = VoteHistory(tmp_path / "votes", SIZES, 3)
    for step in range(8):
        visit(first, step)
    first.commit()
    second = VoteHistory(tmp_path / "votes", SIZES, 3)
    with pytest.raises(DataError, match="resume from its checkpoint or delete the file"):
        visit(second, 0)
    second.reset()
    visit(second, 0)
    assert {vote for frame in everything(second) for vote in frame} == {IGNORE}


def test_file_of_another_data_set_is_refused(tmp_path):
    VoteHistory(tmp_path / "votes", SIZES, 3)
    with pytest.raises(DataError, match="expected the vote history of 31 points in 1 frames"):
        VoteHistory(tmp_path / "votes", [31], 3)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(DataError, match="that is not it"):
        VoteHistory(tmp_path / "junk", [31], 3)
    with pytest.raises(ConfigError, match="at most 13"):
        VoteHistory(tmp_path / "many", SIZES, 14)


def test_other_processes_drop_what_one_has_written(tmp_path):
    writer, reader = (VoteHistory(tmp_path / "votes", SIZES, 3) for _ in range(2))
    for step in range(12):
        visit(writer, step)
        visit(reader, step)
    writer.commit()
    reader.commit(write=False)
    assert not len(reader.state_dict()["frames"])
    assert everything(reader) == everything(writer)
    visit(reader, 12)


def test_corrected_labels():
    pseudo = PointLabels(torch.tensor([0, 0, 0, BACKGROUND, IGNORE, IGNORE, 1]), torch.tensor([4, 4, 4, -1, -1, -1, 6]))
    votes = torch.tensor([0, BACKGROUND, 2, 1, BACKGROUND, IGNORE, IGNORE])
    pseudo = replace(pseudo, confidence=torch.full((7,), 0.5))
    corrected = correct_labels(pseudo, votes)
    assert corrected.semantic_labels.tolist() == [0, BACKGROUND, 2, 1, BACKGROUND, IGNORE, 1]
    assert corrected.instance_ids.tolist() == [4, -1, -1, -1, -1, -1, 6]
    assert corrected.confidence.tolist() == [0.5, 1, 1, 1, 1, 0.5, 0.5]
