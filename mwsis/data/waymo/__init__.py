"""The Waymo Open Dataset, v1 and v2, read and written without TensorFlow; start with `record.py`."""
