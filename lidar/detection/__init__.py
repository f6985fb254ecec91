"""A centre-based 3D detector on the pretrained encoder, for fine-tuning. Start at `detector.py`."""
