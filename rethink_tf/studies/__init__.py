"""Grids of runs: initial weights x schedule x data x norm x rate, as one command."""
