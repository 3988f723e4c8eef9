"""No process, no server, no training worth the name."""
