"""Tests. A package, so that ``python -m tests.benchmarks`` never meets another package of that name."""
