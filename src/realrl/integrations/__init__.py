"""Our objectives and verifiers inside TRL and verl, for larger runs."""
