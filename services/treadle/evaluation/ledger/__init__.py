"""The prediction ledger: records of predictions and labels, and queries over them."""
