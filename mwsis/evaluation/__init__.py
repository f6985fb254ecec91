"""Scores from detections and label arrays; never sees a model."""
