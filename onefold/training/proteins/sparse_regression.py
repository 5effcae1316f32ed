"""Logistic regression with an L1 penalty, fitted to the end: few of many features keep a weight.

Newton's method on the likelihood, coordinate descent with soft thresholds on each quadratic (Friedman, Hastie and
Tibshirani 2010, "Regularization Paths for Generalized Linear Models via Coordinate Descent"). Data are read once for a
step of Newton's, so that millions of rows of hundreds of features take seconds.
"""

import numpy as np

ROWS = 1 << 16  # examples that are computed in float64 at once


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, strength: float, steps: int = 50, tolerance: float = 1e-7
) -> tuple[np.ndarray, float]:
    """(weights Float[D], bias) that make Σ log(1 + exp(-y·f)) + |weights|₁ / strength smallest, y = ±1.

    features: Float[N, D]; labels: Bool[N]. The bias is not penalised. tolerance: relative, on that sum.
    """
    penalty = 1 / strength
    scale = features.std(0, dtype=np.float64) + 1e-12  # features of one size: the same minimum, in fewer sweeps
    center = features.mean(0, dtype=np.float64)
    share = np.clip(labels.mean(), 1e-6, 1 - 1e-6)
    weights = np.append(np.zeros(features.shape[1]), np.log(share / (1 - share)))
    thresholds = np.append(penalty / scale, 0.0)

    def prepared(start: int) -> np.ndarray:
        part = (features[start : start + ROWS] - center) / scale
        return np.concatenate((part, np.ones((len(part), 1))), axis=1)

    def cost(weights: np.ndarray) -> float:
        total = float(thresholds @ abs(weights))
        for start in range(0, len(features), ROWS):
            sign = np.where(labels[start : start + ROWS], 1.0, -1.0)
            total += float(np.logaddexp(0, -sign * (prepared(start) @ weights)).sum())
        return total

    best = cost(weights)
    for _ in range(steps):
        gradient, curvature = np.zeros(len(weights)), np.zeros((len(weights), len(weights)))
        for start in range(0, len(features), ROWS):
            part = prepared(start)
            chance = 1 / (1 + np.exp(-(part @ weights)))
            gradient += part.T @ (chance - labels[start : start + ROWS])
            curvature += part.T @ (part * (chance * (1 - chance))[:, None])
        direction = _descend(weights, gradient, curvature, thresholds) - weights
        size = 1.0
        while (reached := cost(weights + size * direction)) > best and size > 1e-6:
            size /= 2  # far from the minimum a quadratic may promise too much
        if reached > best:
            break
        weights, gained, best = weights + size * direction, best - reached, reached
        if gained <= tolerance * max(1.0, best):
            break
    found = weights[:-1] / scale
    return found, float(weights[-1] - found @ center)


def _descend(start: np.ndarray, gradient: np.ndarray, curvature: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The minimum of gradient·d + d·curvature·d/2 + thresholds·|w|, d = w - start, coordinate by coordinate."""
    weights, slope = start.copy(), gradient.copy()
    own = curvature.diagonal() + 1e-9
    for sweep in range(1000):
        # Most weights stay 0: a sweep over all of them is followed by some over the others.
        places = range(len(weights)) if sweep % 10 == 0 else np.flatnonzero(weights)
        largest = 0.0
        for i in places:
            aim = own[i] * weights[i] - slope[i]
            new = np.sign(aim) * max(abs(aim) - thresholds[i], 0.0) / own[i]
            if change := new - weights[i]:
                weights[i] = new
                slope += change * curvature[:, i]
                largest = max(largest, change * change * own[i])
        if largest < 1e-12 * max(1.0, abs(gradient).sum()) and sweep % 10 == 0:
            break
    return weights
