"""Segmentation metrics of two masks, each with its formula, its unit and its rule for empty masks."""

from glimpseg.metrics.calibration import Reliability as Reliability
from glimpseg.metrics.calibration import brier as brier
from glimpseg.metrics.calibration import ece as ece
from glimpseg.metrics.calibration import reliability as reliability
from glimpseg.metrics.lesions import Lesions as Lesions
from glimpseg.metrics.lesions import LesionWise as LesionWise
from glimpseg.metrics.lesions import lesion_count as lesion_count
from glimpseg.metrics.lesions import lesion_wise as lesion_wise
from glimpseg.metrics.overlap import dice as dice
from glimpseg.metrics.overlap import sensitivity as sensitivity
from glimpseg.metrics.overlap import specificity as specificity
from glimpseg.metrics.overlap import volume_error_ml as volume_error_ml
from glimpseg.metrics.overlap import volume_ml as volume_ml
from glimpseg.metrics.overlap import without_small_enhancement as without_small_enhancement
from glimpseg.metrics.surface import EMPTY_RULES as EMPTY_RULES
from glimpseg.metrics.surface import Surface as Surface
from glimpseg.metrics.surface import SurfaceDistances as SurfaceDistances
from glimpseg.metrics.surface import diagonal_mm as diagonal_mm
from glimpseg.metrics.surface import hd95 as hd95
from glimpseg.metrics.surface import hd95_pooled as hd95_pooled
from glimpseg.metrics.surface import surface_dice as surface_dice
