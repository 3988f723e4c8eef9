"""`python -m hpo`, the same as `hpo`."""

from hpo.cli import main

main()
