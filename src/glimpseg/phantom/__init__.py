"""Digital phantom: synthetic brain-tumour studies in four MRI sequences, generated from a seed without patient data.

Start with `generate` for one phantom in memory, or `dataset.write_phantoms` for a folder of studies.

>>> from glimpseg import phantom
>>> case = phantom.generate(7, phantom.Settings.at_spacing(4.0))
>>> case.images.shape  # modality x y z
torch.Size([4, 60, 60, 39])
>>> case.description["kind"]
'low-grade'
"""

from glimpseg.phantom.generate import Phantom, draw_plan, generate, render, stream
from glimpseg.phantom.plan import Plan
from glimpseg.phantom.populations import POPULATIONS
from glimpseg.phantom.settings import NAME, VERSION, Settings
from glimpseg.phantom.traits import Traits
from glimpseg.phantom.variety import SHIFTED, STANDARD, VARIETIES, WIDE, Variety

__all__ = [
    "NAME",
    "POPULATIONS",
    "SHIFTED",
    "STANDARD",
    "VARIETIES",
    "VERSION",
    "WIDE",
    "Phantom",
    "Plan",
    "Settings",
    "Traits",
    "Variety",
    "draw_plan",
    "generate",
    "render",
    "stream",
]
