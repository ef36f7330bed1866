"""Benchmarks of Pollux: tests/perf/run."""
