"""Adam's ratio r = m̂/√v̂ without a network, and how many modes a distribution has (P2).

P2's theory: coordinates of a layer whose gradients are independent in time have a ratio with one mode at 0; the more of
the gradient stays the same from step to step, the more r gathers at ±1.
"""

import functools

import diptest
import numpy as np
import pandas as pd

from proxies_lib.config import refuse
from proxies_lib.optim import HISTOGRAM_RANGE

LEVEL = 0.05  # of the dip test

CORRELATED = (
    0.5  # ρ at which the simulation has two clear modes: what training's dips are measured against
)

BETA1, BETA2 = (0.0, 0.5, 0.8, 0.9, 0.95), (0.9, 0.95, 0.99, 0.999)

SHARES = tuple(
    np.round(np.linspace(0, 1, 21), 2)
)  # of ρ, where its first rejected value is looked for


@functools.lru_cache(maxsize=4)
def _averages(b1: float, b2: float, n: int, seed: int) -> tuple[np.ndarray, ...]:
    """c, and the moving averages of ξ over β1 and over β2, and of ξ² over β2, once the slower has forgotten its start."""
    rng = np.random.default_rng((seed, 10))
    steps = int(np.ceil(np.log(1e-2) / np.log(max(b1, b2, 0.5))))
    common = rng.standard_normal(n, np.float32)
    first, second, square = np.zeros((3, n), np.float32)
    for _ in range(steps):
        noise = rng.standard_normal(n, np.float32)
        first += (1 - b1) * (noise - first)
        second += (1 - b2) * (noise - second)
        square += (1 - b2) * (noise * noise - square)
    return common, first / (1 - b1**steps), second / (1 - b2**steps), square / (1 - b2**steps)


def ratio(
    rho: float, b1: float = 0.9, b2: float = 0.95, n: int = 5000, seed: int = 0
) -> np.ndarray:
    """r of `n` independent coordinates (n,), once the slower moment has forgotten its start.

    Gradients are √ρ·c + √(1−ρ)·ξ_t, c fixed for each coordinate, ξ_t drawn anew at each step, both N(0, 1): ρ is the share of
    the variance that all steps have in common. Raises UserError where ρ is not in [0, 1], β1 not in [0, 1) or β2 not in (0, 1).
    """
    if not 0 <= rho <= 1:
        refuse("rho", rho, "must be in [0, 1]")
    if not 0 <= b1 < 1:
        refuse("b1", b1, "must be in [0, 1)")
    if not 0 < b2 < 1:
        refuse("b2", b2, "must be in (0, 1)")
    common, first, second, square = _averages(b1, b2, n, seed)
    fixed, fresh = np.sqrt(rho), np.sqrt(1 - rho)
    m = fixed * common + fresh * first
    v = (
        rho * common**2 + 2 * fixed * fresh * common * second + (1 - rho) * square
    )  # the average of g², ξ's part by part
    return m / np.sqrt(np.maximum(v, np.finfo(np.float32).tiny))


def std_without_correlation(b1: float) -> float:
    """√((1−β1)/(1+β1)), std of r at ρ = 0: that of an average whose weights are (1−β1)·β1^k. It takes √v̂ for constant,
    so it is the limit of β2 → 1; a small β2 leaves v̂ noisy and correlated with m̂. Simulated at β1 = 0.9, std is smaller by
    1.4 ± 0.1 % at β2 = 0.95, 0.5 ± 0.2 % at 0.99 and 0.3 ± 0.3 % at 0.999."""
    return float(np.sqrt((1 - b1) / (1 + b1)))


def dip(values) -> tuple[float, float]:
    """Hartigan's dip statistic and its p-value: how far from the nearest distribution with one mode. (0, 1) of constants."""
    values = np.asarray(values, float)
    if len(values) < 4 or np.ptp(values) == 0:
        return 0.0, 1.0
    statistic, p = diptest.diptest(values)
    return float(statistic), float(p)


def dip_of_histogram(shares, n: int = 4096) -> float:
    """Dip statistic of a histogram of equal bins (bins,), each bin's share spread evenly over the bin: features narrower
    than a bin are not seen. No p-value: coordinates of a layer are not independent."""
    counts = np.round(np.asarray(shares, float) / max(np.sum(shares), 1e-12) * n).astype(int)
    return dip(
        np.concatenate([i + (np.arange(c) + 0.5) / c for i, c in enumerate(counts) if c] or [[]])
    )[0]


def first_rejection(b1: float, b2: float, seed: int = 0, n: int = 5000) -> float:
    """The smallest of SHARES from which on the dip test rejects one mode at every larger one; nan where there is none."""
    rejected = np.array([dip(ratio(rho, b1, b2, n, seed))[1] < LEVEL for rho in SHARES])
    accepted = np.flatnonzero(~rejected)
    first = accepted[-1] + 1 if len(accepted) else 0
    return float(SHARES[first]) if first < len(SHARES) else np.nan


def rejections(seed: int = 0, n: int = 2000) -> pd.DataFrame:
    """`first_rejection` over β1 and β2: columns b1, b2, rho."""
    return pd.DataFrame(
        [(b1, b2, first_rejection(b1, b2, seed, n)) for b1 in BETA1 for b2 in BETA2],
        columns=["b1", "b2", "rho"],
    )


def distributions(
    rhos, b1: float = 0.9, b2: float = 0.95, bins: int = 60, n: int = 50_000, seed: int = 0
) -> pd.DataFrame:
    """Histograms of r over ρ: columns rho, left, right, density, and std, dip and p of all of it."""
    frames, edges = [], np.linspace(-HISTOGRAM_RANGE, HISTOGRAM_RANGE, bins + 1)
    for rho in rhos:
        r = ratio(rho, b1, b2, n, seed)
        density, _ = np.histogram(r, edges, density=True)
        statistic, p = dip(r)
        frames.append(
            pd.DataFrame(
                {
                    "rho": rho,
                    "left": edges[:-1],
                    "right": edges[1:],
                    "density": density,
                    "std": r.std(),
                    "dip": statistic,
                    "p": p,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def by_seed(seeds) -> pd.DataFrame:
    """What the claims about the simulation need, a row per seed: std at β2 = 0.999 beside the closed form, the first
    rejected ρ at β = (0.9, 0.95), and the `dip` there at ρ = CORRELATED."""
    rows = []
    for seed in seeds:
        std = ratio(0.0, 0.9, 0.999, 20_000, seed).std()
        rows.append(
            {
                "seed": seed,
                "std": std,
                "closed_form": std_without_correlation(0.9),
                "rho": first_rejection(0.9, 0.95, seed),
                "dip": dip(ratio(CORRELATED, seed=seed))[0],
            }
        )
    return pd.DataFrame(rows)


def shares(points: pd.DataFrame, name: str) -> np.ndarray:
    """A logged histogram, "ratio/embed" or "update/…", of every point: (points, bins)."""
    columns = sorted(
        (c for c in points if c.startswith(f"{name}/")), key=lambda c: int(c.rsplit("/", 1)[1])
    )
    return points[columns].to_numpy(float)


def histograms(points: pd.DataFrame, name: str) -> pd.DataFrame:
    """The same, tidy: key, method, seed, step, left, right, share."""
    found = shares(points, name)
    edges = np.linspace(-HISTOGRAM_RANGE, HISTOGRAM_RANGE, found.shape[1] + 1)
    long = points[["key", "method", "seed", "step"]].loc[points.index.repeat(found.shape[1])]
    return long.assign(
        left=np.tile(edges[:-1], len(points)),
        right=np.tile(edges[1:], len(points)),
        share=found.ravel(),
    )
