"""Records and protocols that the packages share. Owns no behaviour beyond keyed randomness."""
