"""Molecules as maps: shipped ones, PDB and mmCIF files, and maps of any size."""
