"""Adam's ratio r = m̂/√v̂ without a network, and how many modes a distribution has (P2).

P2's theory: coordinates of a layer whose gradients are independent in time have a ratio with one
mode at 0. The more of the gradient stays the same from step to step, the more r gathers at ±1.

Here a gradient is √ρ·c + √(1−ρ)·ξ_t: c fixed for each coordinate, ξ_t drawn anew at each step, both
N(0, 1). ρ is the share of the variance that all steps have in common.
"""

import functools
import itertools

import diptest
import numpy as np
import pandas as pd

from proxies_lib.config import refuse
from proxies_lib.optim import HISTOGRAM_RANGE

LEVEL = 0.05  # of the dip test

# ρ at which the simulation has two clear modes: what training's dips are measured against.
CORRELATED = 0.5

# The grid of `rejections`, and the values of ρ among which the first rejected one is looked for.
BETA1, BETA2 = (0.0, 0.5, 0.8, 0.9, 0.95), (0.9, 0.95, 0.99, 0.999)
SHARES = tuple(np.round(np.linspace(0, 1, 21), 2))


@functools.lru_cache(maxsize=4)
def _averages(b1: float, b2: float, n: int, seed: int) -> tuple[np.ndarray, ...]:
    """c, and the moving averages of ξ over β1, of ξ over β2 and of ξ² over β2, each (n,).

    ρ is not among the arguments: averages are linear, so all ρ share these draws.
    """
    rng = np.random.default_rng((seed, 10))
    # Until the slower average has forgotten all but 1 % of its start.
    steps = int(np.ceil(np.log(1e-2) / np.log(max(b1, b2, 0.5))))
    common = rng.standard_normal(n, np.float32)
    first, second, square = np.zeros((3, n), np.float32)
    for _ in range(steps):
        noise = rng.standard_normal(n, np.float32)
        first += (1 - b1) * (noise - first)
        second += (1 - b2) * (noise - second)
        square += (1 - b2) * (noise * noise - square)
    # Adam's correction of the bias towards the start at 0.
    first /= 1 - b1**steps
    second /= 1 - b2**steps
    square /= 1 - b2**steps
    return common, first, second, square


def ratio(
    rho: float, b1: float = 0.9, b2: float = 0.95, n: int = 5000, seed: int = 0
) -> np.ndarray:
    """r of `n` independent coordinates (n,), once the slower moment has forgotten its start.

    Raises UserError where ρ is not in [0, 1], β1 not in [0, 1) or β2 not in (0, 1).
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
    # The average of g² = ρ·c² + 2·√ρ·√(1−ρ)·c·ξ + (1−ρ)·ξ², term by term.
    v = rho * common**2 + 2 * fixed * fresh * common * second + (1 - rho) * square
    return m / np.sqrt(np.maximum(v, np.finfo(np.float32).tiny))


def std_without_correlation(b1: float) -> float:
    """√((1−β1)/(1+β1)), the std of r at ρ = 0: of an average whose weights are (1−β1)·β1^k.

    It takes √v̂ for constant, so it is the limit of β2 → 1: a small β2 leaves v̂ noisy, and
    correlated with m̂. Simulated at β1 = 0.9, std is smaller by 1.4 ± 0.1 % at β2 = 0.95,
    0.5 ± 0.2 % at 0.99 and 0.3 ± 0.3 % at 0.999.
    """
    return float(np.sqrt((1 - b1) / (1 + b1)))


def dip(values) -> tuple[float, float]:
    """Hartigan's dip statistic, the distance from the nearest one with one mode, and its p-value.

    Constants, and fewer than four values, have (0, 1).
    """
    values = np.asarray(values, float)
    if len(values) < 4 or np.ptp(values) == 0:
        return 0.0, 1.0
    statistic, p = diptest.diptest(values)
    return float(statistic), float(p)


def dip_of_histogram(shares, n: int = 4096) -> float:
    """Dip statistic of a histogram of equal bins (bins,), as of `n` values.

    A bin's values are spread evenly over it, so features narrower than a bin are not seen. There is
    no p-value: coordinates of a layer are not independent.
    """
    counts = np.round(np.asarray(shares, float) / max(np.sum(shares), 1e-12) * n).astype(int)
    values = [i + (np.arange(count) + 0.5) / count for i, count in enumerate(counts) if count]
    if not values:
        return 0.0
    statistic, _ = dip(np.concatenate(values))
    return statistic


def first_rejection(b1: float, b2: float, seed: int = 0, n: int = 5000) -> float:
    """The smallest of SHARES from which on the dip test rejects one mode; nan where there is none.

    It must reject at every larger share too: near the border it rejects some by chance.
    """
    accepted = -1  # the position of the last share that the test accepts
    for i, rho in enumerate(SHARES):
        _, p = dip(ratio(rho, b1, b2, n, seed))
        if p >= LEVEL:
            accepted = i
    first = accepted + 1
    return float(SHARES[first]) if first < len(SHARES) else np.nan


def rejections(seed: int = 0, n: int = 2000) -> pd.DataFrame:
    """`first_rejection` over β1 and β2: columns b1, b2, rho."""
    rows = []
    for b1, b2 in itertools.product(BETA1, BETA2):
        rows.append({"b1": b1, "b2": b2, "rho": first_rejection(b1, b2, seed, n)})
    return pd.DataFrame(rows)


def distributions(
    rhos, b1: float = 0.9, b2: float = 0.95, bins: int = 60, n: int = 50_000, seed: int = 0
) -> pd.DataFrame:
    """Histograms of r over ρ: columns rho, left, right, density; and std, dip and p of all of r."""
    edges = np.linspace(-HISTOGRAM_RANGE, HISTOGRAM_RANGE, bins + 1)
    frames = []
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
    """What the claims about the simulation need, a row per seed.

    `std` at β2 = 0.999 beside its `closed_form`, the first rejected `rho` at β = (0.9, 0.95), and
    the `dip` there at ρ = CORRELATED.
    """
    rows = []
    for seed in seeds:
        statistic, _ = dip(ratio(CORRELATED, seed=seed))
        rows.append(
            {
                "seed": seed,
                "std": ratio(0.0, 0.9, 0.999, 20_000, seed).std(),
                "closed_form": std_without_correlation(0.9),
                "rho": first_rejection(0.9, 0.95, seed),
                "dip": statistic,
            }
        )
    return pd.DataFrame(rows)


def shares(points: pd.DataFrame, name: str) -> np.ndarray:
    """The logged histogram `name`, "ratio/embed" or "update/…", of every point: (points, bins)."""
    prefix = f"{name}/"
    bins = [column.removeprefix(prefix) for column in points if column.startswith(prefix)]
    # By number: as text "10" would come before "2".
    columns = [f"{prefix}{number}" for number in sorted(map(int, bins))]
    return points[columns].to_numpy(float)


def histograms(points: pd.DataFrame, name: str) -> pd.DataFrame:
    """`shares`, tidy, a row per point and bin: key, method, seed, step, left, right, share."""
    found = shares(points, name)
    bins = found.shape[1]
    edges = np.linspace(-HISTOGRAM_RANGE, HISTOGRAM_RANGE, bins + 1)
    repeated = points[["key", "method", "seed", "step"]].loc[points.index.repeat(bins)]
    return repeated.assign(
        left=np.tile(edges[:-1], len(points)),
        right=np.tile(edges[1:], len(points)),
        share=found.ravel(),
    )
