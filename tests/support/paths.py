"""Folders that tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent  # also the folder of networks.py, which studies name as networks:Class
