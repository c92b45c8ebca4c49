"""Reports: pure folds over what was recorded."""
