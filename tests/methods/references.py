"""Every method once more, in NumPy: float64, and plain loops over clients, steps and directions.

Written from the formulas of the papers, to be read beside them. A model ``w`` is a dict of arrays
by path (``"head/kernel"``), and so are gradients and directions; a batch is a pair ``(x, y)`` of
pixels ``[n, pixels]`` and labels ``[n]``, never padded. Everything random is an argument.
"""

import math

import numpy as np

# Trees


def add(w, scale, z):
    """w + scale z"""
    return {path: w[path] + scale * z[path] for path in w}


def zeros_like(w):
    """0, shaped like w"""
    return {path: np.zeros_like(leaf) for path, leaf in w.items()}


def weighted_mean(models, weights):
    """sum_i p_i w_i,  p_i = weights_i / sum weights"""
    mean = zeros_like(models[0])
    for model, weight in zip(models, weights, strict=True):
        mean = add(mean, weight / sum(weights), model)
    return mean


def norm(w):
    """|w|_2 over all leaves"""
    return math.sqrt(sum(np.sum(leaf**2) for leaf in w.values()))


# The model: softmax of x W + b, with or without a layer of relus below


def hidden(w, x, width):
    """max(0, (x V + c) / width): HeteroFL divides a narrow layer by its width; x without a layer"""
    if "hidden/kernel" not in w:
        return x
    return np.maximum((x @ w["hidden/kernel"] + w["hidden/bias"]) / width, 0)


def probabilities(w, x, width=1.0, present=None):
    """softmax of the logits; those of absent classes are 0 first (HeteroFL's mask)"""
    logits = hidden(w, x, width) @ w["head/kernel"] + w["head/bias"]
    if present is not None:
        logits = np.where(present, logits, 0.0)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def loss(w, batch):
    """F(w) = mean of -log p[y]"""
    x, y = batch
    return -np.mean(np.log(probabilities(w, x)[np.arange(len(y)), y]))


def gradient(w, batch, width=1.0, present=None):
    """dF/dw by hand: dF/dlogits = (p - onehot(y)) / n, nothing through a masked logit"""
    x, y = batch
    error = probabilities(w, x, width, present)
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    if present is not None:
        error = np.where(present, error, 0.0)
    below = hidden(w, x, width)
    g = {"head/kernel": below.T @ error, "head/bias": error.sum(axis=0)}
    if "hidden/kernel" in w:
        back = (error @ w["head/kernel"].T) * (below > 0) / width
        g |= {"hidden/kernel": x.T @ back, "hidden/bias": back.sum(axis=0)}
    return g


# First order


def local_sgd(w, batches, *, lr, momentum=0.0, weight_decay=0.0, clip=0.0, width=1.0, present=None):
    """For each batch: u <- momentum u + clipped gradient + weight_decay w,  w <- w - lr u"""
    velocity = zeros_like(w)
    for batch in batches:
        g = gradient(w, batch, width, present)
        if clip and norm(g) > clip:
            g = add(zeros_like(g), clip / norm(g), g)
        velocity = add(add(g, weight_decay, w), momentum, velocity)
        w = add(w, -lr, velocity)
    return w


def mean_delta(w, trained, sizes):
    """sum_i (n_i / sum n) (w - w_i)"""
    return add(w, -1.0, weighted_mean(trained, sizes))


class Server:
    """FedOpt's server: w <- w - lr (step + weight_decay w).

    sgd: step = g.  momentum: m <- b1 m + g, step = m.  adam: m <- b1 m + (1 - b1) g,
    v <- b2 v + (1 - b2) g^2, step = m / (sqrt v + eps), each divided by 1 - b^t.
    """

    b1, eps = 0.9, 1e-8

    def __init__(self, lr, name, b2=0.999, weight_decay=0.0):
        self.name, self.lr, self.b2, self.decay = name, lr, b2, weight_decay
        self.m, self.v, self.t = 0.0, 0.0, 0

    def step(self, w, g):
        """Returns the next w from the pseudo-gradient g."""
        flat = np.concatenate([g[path].ravel() for path in w])
        ends = np.cumsum([leaf.size for leaf in w.values()])[:-1]
        parts = zip(w.items(), np.split(self._direction(flat), ends), strict=True)
        return {
            path: leaf - self.lr * (part.reshape(leaf.shape) + self.decay * leaf)
            for (path, leaf), part in parts
        }

    def _direction(self, g):
        if self.name == "sgd":
            return g
        if self.name == "momentum":
            self.m = self.b1 * self.m + g
            return self.m
        assert self.name == "adam", "tests/engine/test_server.py has the others"
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return m / (np.sqrt(v) + self.eps)


# Zeroth order


def slope(w, batch, z, eps, estimator="two_point"):
    """(F(w + eps z) - F(w - eps z)) / (2 eps), or forward: (F(w + eps z) - F(w)) / eps"""
    ahead = loss(add(w, eps, z), batch)
    if estimator == "forward":
        return (ahead - loss(w, batch)) / eps
    return (ahead - loss(add(w, -eps, z), batch)) / (2 * eps)


def estimate(slopes, directions):
    """1/S sum_m slope_m z_m"""
    total = zeros_like(directions[0])
    for value, z in zip(slopes, directions, strict=True):
        total = add(total, value / len(slopes), z)
    return total


def local_zo(w, batches, directions, *, eps, local_lr, estimator="two_point"):
    """For each step: w <- w - local_lr estimate. Returns the slopes [k][S] and the last w."""
    slopes = []
    for batch, of_step in zip(batches, directions, strict=True):
        slopes.append([slope(w, batch, z, eps, estimator) for z in of_step])
        w = add(w, -local_lr, estimate(slopes[-1], of_step))
    return np.array(slopes), w


def rebuilt(slopes, directions):
    """sum_t 1/S sum_m slope_{t,m} z_{t,m}"""
    total = zeros_like(directions[0][0])
    for of_step, z in zip(slopes, directions, strict=True):
        total = add(total, 1.0, estimate(of_step, z))
    return total


def zo_gradient(slopes, directions, weights):
    """sum_j p_j sum_t 1/S sum_m slope_{j,t,m} z_{j,t,m}"""
    pairs = zip(slopes, directions, strict=True)
    return weighted_mean([rebuilt(of_client, z) for of_client, z in pairs], weights)


def shared_gradient(slopes, directions, weights):
    """sum_t 1/S sum_m (sum_j p_j slope_{j,t,m}) z_{t,m}"""
    mean = sum(weight * of_client for weight, of_client in zip(weights, slopes, strict=True))
    return rebuilt(mean / sum(weights), directions)


def fedzo_local(w, batches, spheres, *, mu, lr):
    """For each step: w <- w - lr mean_m d/mu (F(w + mu v_m) - F(w)) v_m,  |v_m| = 1"""
    size = sum(leaf.size for leaf in w.values())
    for batch, of_step in zip(batches, spheres, strict=True):
        slopes = [size * slope(w, batch, v, mu, "forward") for v in of_step]
        w = add(w, -lr, estimate(slopes, of_step))
    return w


def clip_by_largest(g, limit):
    """g min(1, limit / max|g|)"""
    largest = max(np.max(np.abs(leaf)) for leaf in g.values())
    return add(zeros_like(g), min(1.0, limit / largest), g)


# FedKSeed: slopes of client j at step t belong to the candidates drawn[j][t][m]


def accumulate(accumulators, slopes, drawn, weights):
    """G[k] += sum over clients, steps and draws of candidate k of p_i g / S"""
    accumulators = accumulators.copy()
    for of_client, candidates, weight in zip(slopes, drawn, weights, strict=True):
        for t, m in np.ndindex(of_client.shape):
            share = weight / sum(weights) / of_client.shape[1]
            accumulators[candidates[t][m]] += share * of_client[t, m]
    return accumulators


def from_candidates(start, accumulators, pool, lr):
    """w = w_0 - lr sum_k G[k] z_k"""
    w = start
    for factor, z in zip(accumulators, pool, strict=True):
        w = add(w, -lr * factor, z)
    return w


def remember(history, slopes, drawn):
    """history[k]: every g ever seen for candidate k, after a zero"""
    history = [list(seen) for seen in history]
    for of_client, candidates in zip(slopes, drawn, strict=True):
        for t, m in np.ndindex(of_client.shape):
            history[candidates[t][m]].append(of_client[t, m])
    return history


def pro_probabilities(history):
    """p = softmax(minmax(a)),  a[k] = mean |g clipped at +-1000|"""
    a = np.array([np.mean(np.abs(np.clip(seen, -1000, 1000))) for seen in history])
    spread = a.max() - a.min()
    powers = np.exp((a - a.min()) / spread if spread > 0 else np.zeros_like(a))
    return powers / powers.sum()


# HeteroFL


def leading(w, units):
    """The sub-model of the first hidden units: all inputs, all classes"""
    return {
        "hidden/kernel": w["hidden/kernel"][:, :units],
        "hidden/bias": w["hidden/bias"][:units],
        "head/kernel": w["head/kernel"][:units],
        "head/bias": w["head/bias"],
    }


def mean_over_holders(w, trained, present):
    """Each entry: mean over clients that hold it (of the head: that hold the class), or as it was

    trained: one sub-model a client;  present: bool[classes], one a client.
    """
    total, count = zeros_like(w), zeros_like(w)
    for model, classes in zip(trained, present, strict=True):
        for path, leaf in model.items():
            held = np.ones(leaf.shape)
            if path.startswith("head/"):
                held[..., ~classes] = 0
            region = tuple(slice(length) for length in leaf.shape)
            total[path][region] += held * leaf
            count[path][region] += held
    return {
        path: np.where(count[path], total[path] / np.maximum(count[path], 1), w[path]) for path in w
    }
