"""What a run leaves to look at: metrics on disk, progress on the terminal, and one page that shows both."""
