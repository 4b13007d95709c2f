"""The run directory: layout, versioned records, progress events."""
