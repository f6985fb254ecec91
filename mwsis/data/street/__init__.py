"""The embedded street world: a data set made from a seed, with every label the project needs and ground truth for all.

Built from `shapes.py` up: `vehicles.py`, `people.py`, `scenery.py`; placed by `layout.py`; seen by `sweep.py` and
`render.py`. Start with `source.py`.
"""

from mwsis.data.street.source import GENERATOR_VERSION, StreetSource

__all__ = ["GENERATOR_VERSION", "StreetSource"]
