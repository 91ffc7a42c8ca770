"""Benchmarks: tasks x policies x seeds, one recorded row per finished run, then tables and a report."""

from agents.benchmark.config import BenchmarkConfig, Entry, Key, TaskEntry, load_benchmark
from agents.benchmark.rows import Row, read_rows

__all__ = ["BenchmarkConfig", "Entry", "Key", "Row", "TaskEntry", "load_benchmark", "read_rows"]
