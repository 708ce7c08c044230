"""Gets model files from elsewhere."""
