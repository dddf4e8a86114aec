"""Online features: keys, stored rows, lookups, transforms."""
