"""Historical features: point-in-time joins over Parquet."""
