"""The parts of matplotlib that reports use, imported here alone so that nothing is written into the home directory."""

import atexit
import os
import shutil
import tempfile

if "MPLCONFIGDIR" not in os.environ:
    # matplotlib keeps a font cache; it looks for its place once, when it is first imported.
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="zeroout-matplotlib-")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

__all__ = [
    "Artist",
    "Axes",
    "Figure",
    "FuncFormatter",
    "Line2D",
    "MaxNLocator",
    "NullFormatter",
    "Outline",
    "PathPatch",
    "ScaledTranslation",
    "rcParams",
    "rc_context",
    "rcdefaults",
]
