"""What Dray understood of a model: the program behind `dray models check`."""
