"""The camera branch of mwsis: CondInst, loss terms from boxes, pseudo-mask sources. Start at `segmentor.py`."""
