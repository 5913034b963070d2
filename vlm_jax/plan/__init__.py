"""What a run will need and take on a named machine, by compiling its train step ahead of time."""
