"""The daemon: configuration, the graph of plugins, start and stop, logging."""
