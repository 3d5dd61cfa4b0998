"""`tiny-long`: a small text model whose answers have 32 to 61 tokens that depend on each other."""
