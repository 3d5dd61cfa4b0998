"""How well a checkpoint answers: every direction through the engine, judged from outside."""
