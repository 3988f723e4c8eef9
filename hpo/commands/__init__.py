"""Commands in rooms of their own, which `hpo.cli` mounts. Heavy things are imported inside them, as there."""
