"""The commands, which `hpo.cli` mounts. Heavy modules are imported inside them, so that every command starts fast."""
