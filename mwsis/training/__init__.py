"""A run: configuration, the Lightning module, checkpoints, inference. Start at `run.py`."""
