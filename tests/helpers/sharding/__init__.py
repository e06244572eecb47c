"""Cases of a graph that several processes share; each yields its failures."""
