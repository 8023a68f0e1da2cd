"""Policy weights into generation engines: one verb, one file per transport."""
