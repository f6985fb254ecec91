"""Data sets as `Source`s, the frame store, label caches, the training data set."""
