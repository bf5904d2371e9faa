"""Heads of other papers: their closed forms against the conditions that define them."""

import numpy as np
import pytest
import scipy.sparse

from benchmarks import analytic_heads as heads

RNG = np.random.default_rng(0)


def test_the_sandwiched_solution_leaves_no_gradient():
    f, w, left = RNG.normal(size=(50, 6)), RNG.normal(size=(4, 3)), RNG.normal(size=(50, 3))
    d = heads.sandwiched(f, w, left, 0.3)
    gradient = f.T @ (f @ d @ w - left) @ w.T + 0.3 * d
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


@pytest.mark.parametrize("sparse", (False, True))
def test_ridge_leaves_no_gradient(sparse):
    x, targets = RNG.integers(0, 2, (40, 7)).astype(float), RNG.normal(size=(40, 3))
    w = heads.ridge(scipy.sparse.csr_matrix(x) if sparse else x, targets, 2.0)
    np.testing.assert_allclose(x.T @ (x @ w - targets) + 2.0 * w, 0, atol=1e-3)


def test_a_group_of_bits_is_one_of_its_codes():
    z = RNG.normal(size=(30, 4))
    codes = heads.buckets(z, z, bits=3, group=2).toarray()
    assert codes.shape == (30, 6 * 4)
    np.testing.assert_array_equal(codes.reshape(30, 6, 4).sum(-1), 1)
    # As many different rows as different bits.
    bits = np.concatenate([z > line for line in np.quantile(z, (0.25, 0.5, 0.75), axis=0)], 1)
    assert len(np.unique(codes, axis=0)) == len(np.unique(bits, axis=0)) > 20


def test_layers_of_deepafl_fit_better():
    x = RNG.normal(size=(200, 8)).astype(np.float32)
    labels = (np.prod(x[:, :2], axis=1) > 0).astype(int)
    parts = [(x, labels)] * 3
    found = [
        heads.best(list(seen)) for seen, _ in heads.deep(parts, 3, 16, np.random.default_rng(0))
    ]
    assert found[-1][0] > found[0][0]
    sent = [sent for _, sent in heads.deep(parts, 3, 16, np.random.default_rng(0))]
    assert np.diff(sent).tolist() == [2 * sent[0]] * 3
