"""Jobs, which run to completion: materialization of features, training sets, training."""
