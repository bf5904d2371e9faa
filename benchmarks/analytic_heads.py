"""Prints what the heads of AFL, DeepAFL and SAFLe reach on the features of a finished run.

    python -m benchmarks.analytic_heads --run=R

R is the folder of a run whose features are set in closed form, such as ``patches+ridge``. All three
heads follow from sums over clients, so they are computed from pooled data; penalties are chosen by
the clients' validation examples. Each is the linear head of some features phi, of standardized x:

AFL      phi = x                                                    (arXiv 2405.16240)
DeepAFL  phi_0 = tanh(A_0 x),  phi_t+1 = phi_t + D_t gelu(A_t phi_t): A random; D_t a least-squares
         solution for what the head of phi_t leaves, two rounds of sums a layer  (2603.00579)
SAFLe    phi = one-hot codes of groups of bits x_i > threshold, shuffled: its binary overlapping
         buckets as descriptions of the paper have them, at quantiles  (2512.03336)
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import scipy.special
from absl import flags

import zo_fl
from experiments import cli
from zo_fl import config as configs
from zo_fl.data import federated
from zo_fl.engine.fields import ConfigError

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1)  # of features of variance 1, an example
_SANDWICHED = 0.05  # penalty of D, as in DeepAFL's published script
_STEPS = 60  # conjugate gradients, where features are sparse


def main(argv: list[str]) -> int:
    """Runs the command."""
    del argv
    given = flags.FLAGS
    if not all(bits.isdecimal() and int(bits) for bits in given.bits):
        raise ConfigError(f"--bits={','.join(given.bits)}; allowed: numbers from 1 on, as in 1,2,3")
    parts = _features(given.run)
    dim = parts[0][0].shape[1]
    print(f"{dim:,} features, {len(parts[0][0]):,} examples", flush=True)
    _show("AFL", _sums_bytes(dim), best(parts))
    rng = np.random.default_rng(0)
    for layer, (found, sent) in enumerate(deep(parts, given.layers, given.width, rng)):
        if layer in (0, given.layers) or layer % 5 == 0:
            _show(f"DeepAFL, {layer} layers", sent, best(found))
    for bits in map(int, given.bits):
        codes = [(buckets(z, parts[0][0], bits, given.group), labels) for z, labels in parts]
        width = dim * bits // given.group * 2**given.group
        _show(f"SAFLe, bits a feature: {bits}", _sums_bytes(width), best(codes))
    return 0


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("run", None, "Folder of a finished run.", required=True)
    flags.DEFINE_integer("layers", 20, "Layers of DeepAFL.", lower_bound=0)
    flags.DEFINE_integer("width", 1024, "Width of DeepAFL's layers.", lower_bound=1)
    flags.DEFINE_list("bits", ["1", "2", "3"], "Bits of a feature, for SAFLe; a row each.")
    flags.DEFINE_integer("group", 5, "Bits of a group, for SAFLe.", lower_bound=1)


def _features(folder: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns standardized features and labels of clients' training, validation and test images."""
    model = zo_fl.load(folder)
    federation = federated.load(**configs.plain(model.config)["data"])
    train, test = federation.dataset.train, federation.dataset.test
    held = federation.val_indices
    rows = np.setdiff1d(np.arange(len(train["label"])), held)
    parts = [(model.features(train["image"][at]), train["label"][at]) for at in (rows, held)]
    parts.append((model.features(test["image"]), test["label"]))
    mean, deviation = parts[0][0].mean(0), parts[0][0].std(0) + 1e-6
    return [((h - mean) / deviation, labels) for h, labels in parts]


def best(parts: list[tuple]) -> tuple[float, float, float]:
    """Returns ridge's accuracies on validation and test examples, and the penalty of the first."""
    (x, y), *others = parts
    targets = np.eye(max(y) + 1)[y]
    prior = targets.mean(0)
    found = []
    for penalty in PENALTIES:
        w = ridge(x, targets - prior, penalty * len(y))
        found.append((*(np.mean((z @ w + prior).argmax(1) == t) for z, t in others), penalty))
    return max(found)


def ridge(x, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Returns ``argmin |x w - targets|^2 + penalty |w|^2``, ``f[d, C]``; x may be sparse."""
    if not scipy.sparse.issparse(x):
        gram = x.T @ x + penalty * np.eye(x.shape[1], dtype=x.dtype)
        return scipy.linalg.solve(gram, x.T @ targets, assume_a="pos")
    scale = np.asarray(x.multiply(x).sum(0)).ravel() + penalty
    operator: Any = scipy.sparse.linalg.LinearOperator
    size = x.shape[1], x.shape[1]
    gram = operator(size, lambda v: x.T @ (x @ v) + penalty * v, dtype=np.float64)
    by_scale = operator(size, lambda v: v.ravel() / scale, dtype=np.float64)
    solve = lambda b: scipy.sparse.linalg.cg(gram, b, maxiter=_STEPS, M=by_scale)[0]  # noqa: E731
    return np.stack([solve(b) for b in (x.T @ targets).T], axis=1)


def deep(parts: list[tuple], layers: int, width: int, rng) -> Iterator[tuple[list[tuple], int]]:
    """Yields DeepAFL's features after each layer, and the bytes that a client sent until then."""

    def random(z: np.ndarray, outputs: int):
        bound = 1 / np.sqrt(z.shape[1])
        a = rng.uniform(-bound, bound, (z.shape[1], outputs)).astype(z.dtype)
        shift = rng.uniform(-bound, bound, outputs).astype(z.dtype)
        return lambda z: z @ a + shift

    first, labels = random(parts[0][0], width), [part[1] for part in parts]
    seen, sent = [np.tanh(first(z)) for z, _ in parts], _sums_bytes(width)
    targets = np.eye(max(labels[0]) + 1)[labels[0]].astype(seen[0].dtype)
    for layer in range(layers + 1):
        yield list(zip(seen, labels, strict=True)), sent
        if layer == layers:
            return
        w = ridge(seen[0], targets, 1.0)
        inner = random(seen[0], width)
        grown = [_gelu(inner(z)) for z in seen]
        d = sandwiched(grown[0], w, targets - seen[0] @ w, _SANDWICHED)
        seen = [z + f @ d for z, f in zip(seen, grown, strict=True)]
        sent += 2 * _sums_bytes(width)


def sandwiched(f: np.ndarray, w: np.ndarray, left: np.ndarray, penalty: float) -> np.ndarray:
    """Returns ``argmin_D |left - f D w|^2 + penalty |D|^2`` by two eigendecompositions."""
    of_f, v = np.linalg.eigh(f.T @ f)
    of_w, u = np.linalg.eigh(w @ w.T)
    inner = v.T @ (f.T @ left @ w.T) @ u / (penalty + np.outer(of_f, of_w))
    return v @ inner @ u.T


def _gelu(z: np.ndarray) -> np.ndarray:
    return z * scipy.special.ndtr(z).astype(z.dtype)


def buckets(z: np.ndarray, like: np.ndarray, bits: int, group: int) -> scipy.sparse.csr_matrix:
    """Returns SAFLe's one-hot codes, ``[n, groups 2^group]``, with thresholds by ``like``."""
    thresholds = np.quantile(like[:5000], (np.arange(bits) + 1) / (bits + 1), axis=0)
    on = np.concatenate([z > line for line in thresholds], axis=1)
    order = np.random.default_rng(0).permutation(on.shape[1])
    groups = len(order) // group
    grouped = on[:, order[: groups * group]].reshape(len(z), groups, group)
    index = grouped @ (1 << np.arange(group)) + np.arange(groups) * 2**group
    shape, ends = (len(z), groups * 2**group), np.arange(0, index.size + 1, groups)
    return scipy.sparse.csr_matrix((np.ones(index.size, np.float32), index.ravel(), ends), shape)


def _sums_bytes(dim: int) -> int:
    """Returns the bytes of sums of ``phi phi^T``, half of it, and of ``phi y^T`` in float32."""
    return 4 * (dim * (dim + 1) // 2 + 10 * dim)


def _show(name: str, sent: int, found: tuple[float, float, float]) -> None:
    held, tested, penalty = found
    print(
        f"{name:28s} validation {held:6.1%}  test {tested:6.1%}  penalty {penalty:g}  "
        f"a client sends {sent / 1e6:,.1f} MB",
        flush=True,
    )


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
