"""Cases that several processes run together; each yields its failures."""
