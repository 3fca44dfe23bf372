"""Data sets of known length whose examples can be had in any order: files, hub, memory, cut iterables."""
