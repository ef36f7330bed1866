"""The test runner behind tests/run: requirements, build, suites, and the closing table."""
