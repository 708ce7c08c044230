"""The values of the interfaces between page, backends and engines. Uses the standard library only."""
