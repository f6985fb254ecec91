"""The vocabulary: frames, instances, geometry, numerics that every other package shares."""
