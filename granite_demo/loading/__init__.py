"""From a folder on the disk to a model in memory."""
