"""Ray: placement, actor groups and the System handle. The only importer of ray."""
