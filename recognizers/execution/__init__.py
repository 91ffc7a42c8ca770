"""Running compact networks: by stages, with fused operations, and only from where something changed."""
