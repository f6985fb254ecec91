"""The pretrained 3D backbone in the formats of other frameworks."""
