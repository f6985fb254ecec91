"""What classes are like, by name or as given."""

from __future__ import annotations

import pytest

from mwsis.core.errors import ConfigError
from mwsis.data.classes import KINDS, kinds_of


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (("Vehicle", "Pedestrian", "Cyclist"), (0, 1, 2)),
        (("person", "car", "bicycle"), (1, 0, 2)),
        (("motorcycle", "School bus", "Motorcyclist", "people"), (2, 0, 2, 1)),
        (("a", "b"), (0, 1)),
        (("car", "dog"), (0, len(KINDS))),
        (("a", "b", "c", "d"), (len(KINDS),) * 4),
    ],
)
def test_by_the_words_in_their_names(names, kinds):
    assert kinds_of(names) == kinds


def test_as_given():
    assert kinds_of(("dog", "tractor"), ["pedestrian", "vehicle"]) == (1, 0)
    with pytest.raises(ConfigError, match=r"expected one of .* for each of the 2 classes dog, tractor, got"):
        kinds_of(("dog", "tractor"), ["vehicle"])
    with pytest.raises(ConfigError, match=r"data\.kinds: no kind 'vehcle'; did you mean 'vehicle'"):
        kinds_of(("tractor",), ["vehcle"])
