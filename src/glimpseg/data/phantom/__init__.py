"""The digital phantom: tumour cases in four sequences, drawn from a seed, with no patient behind them."""

from glimpseg.data.phantom.generate import Phantom, generate, render, sample, stream
from glimpseg.data.phantom.plan import Plan
from glimpseg.data.phantom.settings import NAME, VERSION, Settings
from glimpseg.data.phantom.variety import SHIFTED, STANDARD, VARIETIES, WIDE, Variety

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
    "generate",
    "render",
    "sample",
    "stream",
]
