"""One training loop over ``accelerate``: a generator of logs that resumes as if it had never stopped.

Two rules make the resume exact. *Data is a pure function of a number*: ``dataset[n]`` is the n-th training sample,
always the same, and step ``s`` takes samples ``s·B … s·B + B − 1``, so the data position is the step; all updates of a
step work on the step's own batch. *Randomness is a pure function of the step*: every draw inside a loss and the
networks comes from streams derived from (seed, step, process, micro-batch, update, repeat), and the caller's own random
state is left as it was. What remains to be stored is the weights, the optimisers, the EMA and the step.
"""

from ldctlib.training.config import LossFunction, Optimizer, TrainConfig, Update
from ldctlib.training.loop import TrainLog, train
from ldctlib.training.state import STATE_FORMAT
