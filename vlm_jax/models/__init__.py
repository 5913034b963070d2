"""Models: frozen dataclasses whose fields are the config and whose methods are pure functions over variables."""
