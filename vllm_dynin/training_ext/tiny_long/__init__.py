"""`tiny-long`: a small text model whose answers have 32 to 62 tokens that depend on each other."""
