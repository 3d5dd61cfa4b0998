"""`tiny-text`: a one-million-parameter model that copies, reverses and sorts words."""
