"""What the nouns of a container runtime are: typed, immutable values without I/O, and the protocols of their stores."""
