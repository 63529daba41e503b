"""Colors of the figures, made legible on a light and on a dark page."""

import matplotlib.colors
import numpy as np

from proxies_lib.science import styles

# The panels that charts stand on: --panel of site.css, light and dark.
PANELS = ("#ffffff", "#161b22")

CONTRAST = 3.0  # of a line with its panel, at the least (WCAG 1.4.11)

# Of a color with each panel, before it is faded: on a dark one thin lines want more.
WANTED = (3.0, 5.0)

# Matplotlib's markers by the names that Plotly gives them.
SYMBOLS = {
    "o": "circle",
    "X": "x",
    "v": "triangle-down",
    "^": "triangle-up",
    "<": "triangle-left",
    ">": "triangle-right",
    "D": "diamond",
    "d": "diamond-tall",
    "s": "square",
    "P": "cross",
    "p": "pentagon",
    "h": "hexagon",
    "H": "hexagon2",
    "*": "star",
    "_": "line-ew-open",
}

Pair = tuple[str, str]  # a color on the light page, and on the dark one


def contrast(one: str, other: str) -> float:
    """The contrast of two colors, from 1 to 21 (WCAG 2)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    rgb = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def mixed(color: str, other: str, share: float) -> str:
    """`color` with a share of another one."""
    parts = [np.array(matplotlib.colors.to_rgb(c)) for c in (color, other)]
    red, green, blue = parts[0] * (1 - share) + parts[1] * share
    return matplotlib.colors.to_hex((red, green, blue))


def legible(color: str, panel: str, wanted: float) -> str:
    """`color`, moved away from the panel's until it has the `wanted` contrast."""
    away = "#000000" if _luminance(panel) > 0.5 else "#ffffff"
    shares = np.linspace(0, 1, 41)
    tries = (mixed(color, away, share) for share in shares)
    return next(tried for tried in tries if contrast(tried, panel) >= wanted)


def pair(color) -> Pair:
    """A color of a figure for both pages."""
    plain = matplotlib.colors.to_hex(color)
    light, dark = (legible(plain, *aim) for aim in zip(PANELS, WANTED, strict=True))
    return light, dark


def of_method(method: str) -> Pair:
    return pair(styles.style_of(method)[0])


def symbol_of(method: str) -> str:
    return SYMBOLS.get(styles.style_of(method)[1], "circle")


def shaded(colors: Pair, share: float) -> Pair:
    """A pair nearer to its panels, at most half-way at a share of 0, itself at 1; it stays legible,
    and keeps its hue."""
    light, dark = (
        next(c for c in _fading(color, panel, share) if contrast(c, panel) >= CONTRAST)
        for color, panel in zip(colors, PANELS, strict=True)
    )
    return light, dark


def _fading(color: str, panel: str, share: float):
    """Mixtures of a color with its panel, from the faintest to the color itself."""
    return (mixed(color, panel, faintness) for faintness in np.linspace(0.5 * (1 - share), 0, 21))


def of_ramp(values, ramp) -> dict:
    """A pair per value, from a ramp such as `styles.lr_colors`."""
    return {value: pair(color) for value, color in ramp(values).items()}
