"""Processes, devices, files and signals."""
