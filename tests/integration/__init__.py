"""Executors, browser, containers: the real thing beside us."""
