"""The interventions Φ, one file each, and the registry that config files name them by.

Must not know: positions, layers, masks, models.
"""

from __future__ import annotations

from reftune.interventions.activations import ACTIVATIONS
from reftune.interventions.base import Intervention, InterventionOptions, LowRankIntervention, OrthonormalIntervention
from reftune.interventions.consreft import Consreft
from reftune.interventions.direft import Direft
from reftune.interventions.direft_orthonormal import DireftOrthonormal
from reftune.interventions.lobireft import Lobireft
from reftune.interventions.loreft import Loreft
from reftune.interventions.noreft import Noreft
from reftune.interventions.orthonormal import orthonormal_rows
from reftune.interventions.red import Red
from reftune.interventions.steer import Steer

__all__ = [
    "ACTIVATIONS",
    "INTERVENTIONS",
    "Consreft",
    "Direft",
    "DireftOrthonormal",
    "Intervention",
    "InterventionOptions",
    "Lobireft",
    "Loreft",
    "LowRankIntervention",
    "Noreft",
    "OrthonormalIntervention",
    "Red",
    "Steer",
    "orthonormal_rows",
]

INTERVENTIONS: dict[str, type[Intervention]] = {
    "consreft": Consreft,
    "direft": Direft,
    "direft_orthonormal": DireftOrthonormal,
    "lobireft": Lobireft,
    "loreft": Loreft,
    "noreft": Noreft,
    "red": Red,
    "steer": Steer,
}
