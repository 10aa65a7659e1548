"""Pictures of a run; a leaf that only the command line imports."""
