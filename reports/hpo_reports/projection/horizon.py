"""How long a full training run is, and the epochs at which its loss is projected."""

from __future__ import annotations

LONG_RUN_EPOCHS = 20  # as in the experiment log that reports follow
PROJECTED_EPOCHS = (1.0, 5.0, 10.0, 15.0, float(LONG_RUN_EPOCHS))
