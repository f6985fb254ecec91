"""KITTI's AP at 40 recalls as its development kit goes about it: loops over objects, detections and cutoffs."""

from __future__ import annotations

from typing import Any

MIN_HEIGHT = {"easy": 40, "moderate": 25, "hard": 25}
MAX_OCCLUSION = {"easy": 0, "moderate": 1, "hard": 2}
MAX_TRUNCATION = {"easy": 0.15, "moderate": 0.3, "hard": 0.5}
MIN_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}


def average_precision(frames: list[dict[str, Any]], name: str, difficulty: str) -> tuple[float, int]:
    """Return AP and how many objects count.

    Args:
        frames: each ``objects`` = [dict(type, height, occluded, truncated)], ``found`` = [dict(type, height, score)],
            ``overlap`` = [[of object with detection]].
    """
    states = [(object_states(frame, name, difficulty), found_states(frame, name, difficulty)) for frame in frames]
    count = sum(state.count(0) for state, _ in states)
    hits: list[float] = []
    for frame, state in zip(frames, states, strict=True):
        hits += statistics(frame, *state, MIN_OVERLAP[name], None)[3]
    cutoffs = thresholds(hits, count)
    precision = [0.0] * 41
    for position, cutoff in enumerate(cutoffs):
        tp = fp = 0
        for frame, state in zip(frames, states, strict=True):
            more = statistics(frame, *state, MIN_OVERLAP[name], cutoff)
            tp, fp = tp + more[0], fp + more[1]
        precision[position] = tp / (tp + fp) if tp + fp else 0.0
    for position in range(41):
        precision[position] = max(precision[position:])
    return sum(precision[1:]) / 40, count


def object_states(frame, name, difficulty):
    states = []
    for item in frame["objects"]:
        neighbour = (name, item["type"]) in {("Car", "Van"), ("Pedestrian", "Person_sitting")}
        hard = (
            item["occluded"] > MAX_OCCLUSION[difficulty]
            or item["truncated"] > MAX_TRUNCATION[difficulty]
            or item["height"] <= MIN_HEIGHT[difficulty]
        )
        if item["type"] == name and not hard:
            states.append(0)
        elif neighbour or (item["type"] == name and hard):
            states.append(1)
        else:
            states.append(-1)
    return states


def found_states(frame, name, difficulty):
    states = []
    for item in frame["found"]:
        if item["height"] < MIN_HEIGHT[difficulty]:
            states.append(1)
        elif item["type"] == name:
            states.append(0)
        else:
            states.append(-1)
    return states


def statistics(frame, object_state, found_state, min_overlap, cutoff):
    """Return hits, false alarms, misses and the scores of the hits; without a cutoff the surest one is taken."""
    found = frame["found"]
    assigned = [False] * len(found)
    below = [cutoff is not None and item["score"] < cutoff for item in found]
    tp = fn = 0
    hits = []
    for i, state in enumerate(object_state):
        if state == -1:
            continue
        chosen, best, chosen_ignored = -1, 0.0, False
        for j, item in enumerate(found):
            if found_state[j] == -1 or assigned[j] or below[j]:
                continue
            overlap = frame["overlap"][i][j]
            if overlap <= min_overlap:
                continue
            if cutoff is None:
                if chosen < 0 or item["score"] > found[chosen]["score"]:
                    chosen = j
            elif found_state[j] == 0 and (overlap > best or chosen_ignored):
                chosen, best, chosen_ignored = j, overlap, False
            elif found_state[j] == 1 and chosen < 0:
                chosen, chosen_ignored = j, True
        if chosen < 0:
            fn += state == 0
            continue
        assigned[chosen] = True
        if state == 0 and found_state[chosen] == 0:
            tp += 1
            hits.append(found[chosen]["score"])
    fp = sum(1 for j in range(len(found)) if not (assigned[j] or below[j]) and found_state[j] == 0)
    return tp, fp, fn, hits


def thresholds(scores, count):
    scores = sorted(scores, reverse=True)
    recall, kept = 0.0, []
    for i, score in enumerate(scores):
        left = (i + 1) / count
        right = (i + 2) / count if i < len(scores) - 1 else left
        if right - recall < recall - left and i < len(scores) - 1:
            continue
        kept.append(score)
        recall += 1 / 40
    return kept
