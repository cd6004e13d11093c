"""The digital phantom: tumour cases in four sequences, drawn from a seed, with no patient behind them."""

from glimpseg.phantom.generate import Phantom, draw_plan, generate, render, stream
from glimpseg.phantom.plan import Plan
from glimpseg.phantom.settings import NAME, VERSION, Settings
from glimpseg.phantom.variety import SHIFTED, STANDARD, VARIETIES, WIDE, Variety

__all__ = [
    "NAME",
    "SHIFTED",
    "STANDARD",
    "VARIETIES",
    "VERSION",
    "WIDE",
    "Phantom",
    "Plan",
    "Settings",
    "Variety",
    "draw_plan",
    "generate",
    "render",
    "stream",
]
