"""The recipe of a project, `lfm-convert.toml`: what is released, and what it is held to."""
