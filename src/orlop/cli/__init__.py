"""`orlop`: the command line for people."""
