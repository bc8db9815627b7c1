"""The ten verbs of the pipeline; each is a module with a `run` from files to files."""
