"""Online features: entity keys, stored rows, lookups, transform execution."""
