"""Several processes, one run: ranks of an MPI world (mpi4py, the extra "mpi"), or one process alone.

    ranks.py       who is there, what all must agree on, waiting that ends when another rank has failed (alone.py,
                   processes.py, messages.py, patience.py, cores.py)
    shares.py      which parts of a batch and which pictures are whose
    reduction.py   one gradient out of every rank's, summed in a fixed tree, while the backward still runs (tree.py,
                   exchange.py, transfers.py: who adds what, one sum under way, messages and what follows them)
    dealing.py     work in pieces, whose results rank 0 takes in order

`import cvit` does not import mpi4py; `ranks.of(comm)` does where a communicator is given, `ranks.launched()` where an
MPI launcher has started this process as one of several.
"""
