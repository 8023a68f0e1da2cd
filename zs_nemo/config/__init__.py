"""Settings: dataclass schemas with their cross-field checks. Imports no torch."""
