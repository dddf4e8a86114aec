"""The evaluation service: metrics with intervals, gates, reports, and the prediction ledger."""
