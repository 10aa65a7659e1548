"""Check whether an answer equals the gold answer: extraction, LaTeX, values, worker processes. Free of torch."""
