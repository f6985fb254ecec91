"""What was found or labelled, in the file formats of COCO, SemanticKITTI, nuScenes-lidarseg, Waymo and labelme.

`formats.py` opens the writers that a user asked for; `exporter.py` is what they share, the rest one file per format.
"""
