"""What it costs: benchmarks, what fits a device, FLOPs. Imports everything but the command line."""
