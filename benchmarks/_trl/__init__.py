"""Programs that run in TRL's environment (`benchmarks._peer`); of this project they import the shim and helpers."""
