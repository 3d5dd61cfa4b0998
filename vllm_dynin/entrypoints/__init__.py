"""Command line and HTTP routes: the only place that knows OpenAI shapes."""
