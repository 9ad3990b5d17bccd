"""From a path to a trained model: `train` reads the data, chooses model and recipe, and fills a run's folder.

recipe.py        every setting of a run, and the presets          folder.py      the run's folder: names, lock, run.json
architecture.py  the model: published, or new                     training.py    the run itself, and how it is resumed
job.py           data + model + recipe, checked, not begun        results.py     what is written at its end
forecast.py      what a run would take: `--dry-run`
"""

from .job import Job, prepare
from .recipe import PRESETS, Recipe
from .training import Run, train

__all__ = ["PRESETS", "Job", "Recipe", "Run", "prepare", "train"]
