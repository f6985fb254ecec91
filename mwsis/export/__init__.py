"""The pretrained 3D backbone in the formats of other frameworks; in `labels`, what was found in those of data sets."""
