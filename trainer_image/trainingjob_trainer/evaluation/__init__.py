"""What a model is worth and what is handed out of it: metrics of a split, export, report."""
