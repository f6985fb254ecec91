from __future__ import annotations

import sys

import pytest
import torch

from mwsis.core import segment_ops
from mwsis.core.errors import ConfigError
from mwsis.core.segment_ops import segment_max, segment_mean, segment_median, segment_sum


@pytest.fixture(autouse=True, params=["torch", "scatter"])
def implementation(request):
    """Every test holds for both; torch-scatter is an extra that takes minutes to build."""
    if request.param == "scatter":
        pytest.importorskip("torch_scatter", reason="the extra 'scatter' is not installed")
    segment_ops.use(request.param)
    yield request.param
    segment_ops.use("torch")


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 6, (50,), generator=generator)
    return values, ids + (ids >= 4)  # segment 4 stays empty


def test_equal_loops():
    values, ids = ragged()
    for segment in (0, 1, 2, 3, 5, 6):
        rows = values[ids == segment]
        torch.testing.assert_close(segment_sum(values, ids, 7)[segment], rows.sum(0))
        torch.testing.assert_close(segment_mean(values, ids, 7)[segment], rows.mean(0))
        torch.testing.assert_close(segment_max(values, ids, 7)[segment], rows.max(0).values)


def test_empty_segments():
    values, ids = ragged()
    assert segment_sum(values, ids, 8)[4].tolist() == [0, 0, 0]
    assert segment_mean(values, ids, 8)[7].tolist() == [0, 0, 0]
    assert segment_max(values, ids, 8)[4].tolist() == [-torch.inf] * 3
    nothing = torch.zeros(0, 2)
    assert segment_mean(nothing, torch.zeros(0, dtype=torch.int64), 3).tolist() == [[0, 0]] * 3
    assert segment_sum(torch.ones(2, dtype=torch.int64), torch.tensor([1, 1]), 3).tolist() == [0, 2, 0]


def test_gradients():
    values, ids = ragged()
    for reduce in (segment_sum, segment_mean, segment_max):
        assert torch.autograd.gradcheck(lambda v, reduce=reduce: reduce(v, ids, 7)[[0, 1, 2, 3, 5, 6]], values)


def test_one_dimension():
    assert segment_max(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 1]), 2).tolist() == [3, 2]
    assert segment_mean(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 1]), 2).tolist() == [2, 2]


def test_median_equals_loops_and_is_infinite_where_nothing_is():
    values, ids = ragged()
    medians = segment_median(values[:, 0], ids, 8)
    for segment in (0, 1, 2, 3, 5, 6):
        assert medians[segment] == values[ids == segment, 0].median()  # torch's is the lower one, too
    assert medians[[4, 7]].tolist() == [torch.inf] * 2
    assert segment_median(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 2).tolist() == [torch.inf] * 2


@pytest.mark.parametrize("implementation", ["scatter"], indirect=True)
@pytest.mark.parametrize("reduce", [segment_sum, segment_mean, segment_max])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_equal_plain_torch_with_gradients(implementation, reduce, shape):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2000, *shape, generator=generator, requires_grad=True)
    ids = torch.randint(0, 300, (2000,), generator=generator)
    cotangent = torch.randn(300, *shape, generator=generator)
    results = []
    for name in ("torch", implementation):
        segment_ops.use(name)
        found = reduce(values, ids, 300)
        found = found.masked_fill(found.isinf(), 0)
        results.append((found.detach(), *torch.autograd.grad(found, values, cotangent)))
    torch.testing.assert_close(*results)


def test_gradient_of_equal_maxima(implementation):
    values = torch.ones(4, requires_grad=True)
    segment_max(values, torch.tensor([0, 0, 0, 1]), 2).sum().backward()
    first = values.grad[:3].sort().values.tolist()
    assert first == pytest.approx([1 / 3] * 3 if implementation == "torch" else [0, 0, 1])
    assert values.grad[3] == 1


@pytest.mark.parametrize("implementation", ["torch"], indirect=True)
def test_what_is_not_there_cannot_be_chosen(monkeypatch):
    with pytest.raises(ConfigError, match=r"segment_ops: expected one of \['torch', 'scatter'\], got numba"):
        segment_ops.use("numba")
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    with pytest.raises(ConfigError, match=r"torch-scatter cannot be imported .*install the extra 'scatter'"):
        segment_ops.use("scatter")
