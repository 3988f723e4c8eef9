"""How far a study is: on a terminal, as JSON lines, as a webhook's message."""
