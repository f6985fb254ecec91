"""Data sets (`Source`), the frame store, label caches, the training data set."""
