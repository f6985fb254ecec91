"""Where the two branches of mwsis meet: labels from boxes, teachers, distillation. Start at `step.py`."""
