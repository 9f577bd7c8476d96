"""`python -m minflamingo bench`: what each part costs, beside its plain twin, the machine's limit, and other Flamingos.

    measure.py                one call timed, its peak memory, and what the machine can do at best
    cases.py                  the models and the work that is timed
    peers.py                  another implementation in a process of its own, on the same weights
    peer_open_flamingo.py     … what that process runs: open_flamingo 2.0.1
    peer_idefics.py           … and IDEFICS of transformers
    command.py                the whole table, as JSON and as a figure

All that is compared is run in turns within one run, so that a busy machine is busy for both; ratios are those of medians.
"""
