"""The digital phantom: tumour cases in four sequences, drawn from a seed, with no patient behind them."""

from glimpseg.data.phantom.generate import Phantom, generate, render, stream
from glimpseg.data.phantom.plan import Plan, sample
from glimpseg.data.phantom.settings import NAME, VERSION, Settings

__all__ = ["NAME", "VERSION", "Phantom", "Plan", "Settings", "generate", "render", "sample", "stream"]
