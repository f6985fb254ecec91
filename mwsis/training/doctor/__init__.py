"""What may be wrong with an installation or a machine, one question at a time. Start at `checks.py`."""
