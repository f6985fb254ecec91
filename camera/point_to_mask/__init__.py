"""Instance masks from one point per object and a map of classes (P2Seg); see `instances_from_semantics`."""
