"""Configurations that zeroout ships, as package data: tasks, controllers, benchmarks."""
