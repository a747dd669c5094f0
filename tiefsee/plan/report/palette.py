"""Colours by what they are for, on light and on dark ground.

Series colours are those of Okabe and Ito (Color Universal Design, 2008), told apart by eyes of every kind, made darker
or lighter until the surface's colour can be read on them, 4.5 to 1 (WCAG 1.4.3). Shapes repeat what they say.
"""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "ground": "#f4f8f9", "surface": "#ffffff", "ink": "#10242e", "quiet": "#4b6470", "line": "#cfdde2",
    "accent": "#0b6278", "warn": "#8a2d1b",
    "c0": "#0072b2", "c1": "#bd5200", "c2": "#007f5c", "c3": "#b0568b", "c4": "#946400", "c5": "#1f3b73",
    "c6": "#6b5fb5", "c7": "#63707a",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "ground": "#07151d", "surface": "#0d202b", "ink": "#e2eef2", "quiet": "#9bb4bf", "line": "#23404e",
    "accent": "#6fc7d9", "warn": "#ffb4a3",
    "c0": "#56b4e9", "c1": "#f0894a", "c2": "#33c296", "c3": "#e08fc0", "c4": "#e3b341", "c5": "#bccbf7",
    "c6": "#a79bea", "c7": "#8fa0aa",
}  # fmt: skip
SERIES = ("c0", "c1", "c2", "c3", "c4", "c5", "c6")  # c7, grey, is for what is left
SHAPES = ("circle", "square", "triangle", "diamond")


def colour_of(number: int) -> str:
    """Of the n-th series; after seven they come again, with another shape."""
    return SERIES[number % len(SERIES)]


def shape_of(number: int) -> str:
    return SHAPES[(number + number // len(SERIES)) % len(SHAPES)]
