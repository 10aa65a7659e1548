"""Whether an answer equals the gold one: extraction, LaTeX, values, killable workers. Free of torch."""
