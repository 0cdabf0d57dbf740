"""From a folder of validated artifacts to repositories of a model hub: contents, cards, provenance, upload, check."""
