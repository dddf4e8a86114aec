"""What runs and ends: materializing features, building training sets, and the like."""
