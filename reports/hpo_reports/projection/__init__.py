"""Learning curves projected to a horizon, with intervals that are calibrated, and scored when the truth is known.

    curves.py        a run's losses by epoch, and how they are read at any time between
    pool.py          four predictors of how a curve goes on, as weighted paths
    calibration.py   how far the pool's intervals have to be scaled to hold what they promise
    project.py       a run's projection, or the reason why there is none; its score once the run has ended

Everything is in nats per token against epochs; perplexities are for people. NumPy alone.
"""
