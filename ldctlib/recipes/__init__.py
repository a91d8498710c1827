"""How each shipped checkpoint is trained: one recipe each, the same call alone, in a notebook, under ``torchrun``.

    python -m ldctlib.recipes nafnet --profile train
    python -m ldctlib.recipes nafnet --profile train --max-seconds 500     # again and again: it resumes
    python -m ldctlib.recipes --graph                                      # who needs whom
    torchrun --standalone --nproc_per_node 4 -m ldctlib.recipes man --profile paper --data FOLDER

A recipe has stages; each starts from the averaged weights of the one before.
"""

from ldctlib.recipes.recipe import HU_RANGE, SMALL_BANKS, Context, Network, Recipe, Stage
from ldctlib.recipes.running import RECIPES, graph, recipe, run
