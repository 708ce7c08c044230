"""The benchmark suites, one module each."""
