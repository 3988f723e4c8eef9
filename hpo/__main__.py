"""`python -m hpo`, the same as `hpo`."""

import os
import sys

# `-m` has put the current folder first on the path. It is the user's: a random.py or torch.py of theirs must not take
# the place of a module that we import.
if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from hpo.cli import main

main()
