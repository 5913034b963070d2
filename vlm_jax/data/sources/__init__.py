"""Sources: random access to records of `image` and `text`, whatever they are stored in."""
