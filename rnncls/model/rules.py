"""By which rules a run takes its steps, where a later version would take them otherwise.

A run keeps the rules that it began with, so that it goes on to the bit. A checkpoint, or the file
of a sweep, that names none is of the first.

1. Dropout is drawn by torch's generator, a layer at a time. On the CPU, every batch is packed, GRU
   and LSTM are torch's own functions, validation is run by torch, and only an nn.RNN of one
   direction, without dropout, whose head sees the last state or the mean has compiled steps.
2. Dropout is drawn by position (`dropout.kept`). On the CPU, GRU and LSTM of packed sequences are
   functions of ours (`gated`), small batches may be padded (`eager.layout_of`), every cell may have
   compiled steps, and large validation sets are run by a compiled program.
3. Compiled steps compute the first layer's products once per token of the vocabulary where a batch
   has many rows for each token, and not only where it has a sequence for each (`is_by_table`).
"""

from typing import Literal

StepRules = Literal[1, 2, 3]

# Of runs and sweeps that begin now.
LATEST: StepRules = 3
