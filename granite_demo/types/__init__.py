"""The values that cross the seams. Standard library only."""
