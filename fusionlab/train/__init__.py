"""Training of the embedded team: the small model by distillation, the experts as adapters on it.

>>> from fusionlab.train import HealSettings, Run, train
>>> run = Run(out=folder, work=scratch, device="cuda")  # doctest: +SKIP
>>> train("small", run, heal_settings=HealSettings(steps=9000))  # doctest: +SKIP

Also `python -m fusionlab.train`. Nothing outside training imports this package.
"""

from fusionlab.train.run import Run
from fusionlab.train.settings import EXPERT_DEFAULTS, CorpusSettings, ExpertSettings, HealSettings
from fusionlab.train.stages import train

__all__ = ["EXPERT_DEFAULTS", "CorpusSettings", "ExpertSettings", "HealSettings", "Run", "train"]
