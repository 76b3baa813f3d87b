"""Events: the exchange between those who publish and those who subscribe."""
