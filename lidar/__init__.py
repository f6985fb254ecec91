"""The LiDAR branch of mwsis: voxels, sparse U-Net, point head, grouping, ring segments. Start at `segmentor.py`."""
