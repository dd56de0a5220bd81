"""Training: batches, the loop, and the runs of the stages ``pretrain`` and ``tune``."""
